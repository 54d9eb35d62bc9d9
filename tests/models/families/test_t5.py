"""What is particular to T5's files: two spellings of its head, and GGUF."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.interop import GGUF
from hllm_jax.interop.gguf_export import save_gguf
from hllm_jax.interop.models import read_params
from hllm_jax.models.families import t5
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.layout import flat_unrolled
from tests.models.families.contract import Case, recorded

CASES = [case for case in recorded() if case.family == "t5"]
#: What llama.cpp's t5 can say: its distances reach 128, and its gated models have GELU.
SAID = [case for case in CASES if case.name not in ("v1_few_buckets", "silu")]

_PUBLISHED: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


@pytest.mark.parametrize(
    ("said", "scaled"),
    [
        ({}, True),  # the first config.json of T5 says nothing of it
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        # transformers 5 calls every T5 tied, and says beside it whether logits are scaled.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": True, "model_type": "mt5"}, False),
    ],
)
def test_what_says_that_the_head_is_tied(said: dict[str, Any], scaled: bool) -> None:
    spec = t5.from_hf({**_PUBLISHED, **said})
    assert (spec.tie_embeddings, spec.scale_logits) == (scaled, scaled)
    assert (spec.activation, spec.gated) == ("gelu_tanh", True)


@pytest.mark.parametrize("name", ["gated-tanh", "glu-relu", "swiglu"])
def test_an_unknown_feed_forward_network_is_refused(name: str) -> None:
    with pytest.raises(ConfigRefused, match=f"feed_forward_proj '{name}' is not implemented"):
        t5.from_hf({**_PUBLISHED, "feed_forward_proj": name})


def test_what_the_formats_cannot_say_is_refused() -> None:
    spec = t5.PRESETS["t5-small"]
    with pytest.raises(
        ConfigRefused, match=r"decoder_layers is 7, layers 6: llama\.cpp's t5 runs no decoder"
    ):
        t5.to_gguf(dataclasses.replace(spec, decoder_layers=7))
    with pytest.raises(ConfigRefused, match="tie_embeddings is False"):
        t5.to_hf(dataclasses.replace(spec, tie_embeddings=False))
    with pytest.raises(ConfigRefused, match="activation is 'gelu'"):
        t5.to_hf(dataclasses.replace(spec, gated=True, activation="gelu"))
    with pytest.raises(ConfigRefused, match="relative_distance is 64"):
        t5.to_gguf(dataclasses.replace(spec, relative_distance=64))
    with pytest.raises(ConfigRefused, match="stop_ids is"):
        t5.to_gguf(dataclasses.replace(spec, stop_ids=()))


def test_values_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigRefused, match="eos_token_id is 'x', expected the id of a token"):
        t5.from_hf({**_PUBLISHED, "eos_token_id": "x"})
    with pytest.raises(ConfigRefused, match="feed_forward_proj is 3, expected a text"):
        t5.from_hf({**_PUBLISHED, "feed_forward_proj": 3})


@pytest.mark.parametrize("case", SAID, ids=repr)
def test_tensors_have_the_names_that_llama_cpp_gives_them(case: Case) -> None:
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(case.params()).items()}
    ours = dict(t5.GGUF_NAMES.save(flat))
    spec: Any = case.spec
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, max(spec.layers, spec.depth))
    wanted = {mapping.get_name(name, (".weight",)): name for name in case.weights}
    assert ours.keys() == wanted.keys()
    for name, published in wanted.items():
        np.testing.assert_array_equal(ours[name], case.weights[published], err_msg=name)


@pytest.mark.parametrize("case", [case for case in SAID if case.name != "v1_1"], ids=repr)
def test_a_gguf_file_is_read_as_it_was_written(case: Case, tmp_path: Path) -> None:
    """But for one whose decoder is the deeper side, which is refused."""
    path = tmp_path / "model.gguf"
    save_gguf(path, case.spec, case.params(), kind="F32", family="t5")
    file = GGUF(path)
    groups = [vars(group) for group in vars(gguf.Keys).values() if isinstance(group, type)]
    known = {key for group in groups for key in group.values() if isinstance(key, str)}
    assert {re.sub(r"^t5\.", "{arch}.", key) for key in file.metadata if key.startswith("t5.")} <= known
    spec: Any = t5.from_gguf(file.metadata, file)
    free = {"dropout": 0.1, "attention_dropout": 0.1, "mlp_dropout": 0.1}
    assert dataclasses.replace(spec, **free) == case.spec
    again = flat_unrolled(read_params(t5.GGUF_NAMES, file, spec))
    for name, leaf in flat_unrolled(case.params()).items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)


def test_the_published_sizes_survive_gguf() -> None:
    for spec in t5.PRESETS.values():
        assert t5.to_gguf(spec)["t5.decoder_block_count"] == spec.depth
