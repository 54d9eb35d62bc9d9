"""Names and numbers in GGUF: those of the `gguf` package's converter tables, there and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from hllm_jax.interop import GGUF
from hllm_jax.interop.gguf_export import save_gguf
from hllm_jax.interop.models import read_params
from hllm_jax.models import DecoderConfig
from hllm_jax.models.families import families
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.layout import flat_unrolled
from hllm_jax.nn import RopeScaling
from hllm_jax.testing.models import tiny_config, tiny_model

_GPT2: dict[str, Any] = {
    "norm": "layer",
    "position": "learned",
    "gated": False,
    "activation": "gelu_tanh",
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 6,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}

#: Family -> what it adds to a tiny decoder, and whether its q and k are reordered.
SPECS: dict[str, tuple[DecoderConfig, bool]] = {
    "llama": (tiny_config(tie_embeddings=False, rope_scaling=RopeScaling(kind="llama3", factor=8.0)), True),
    "qwen2": (tiny_config(qkv_bias=True), False),
    "qwen3": (tiny_config(qk_norm=True, tie_embeddings=False), False),
    "gpt2": (tiny_config(**_GPT2), False),
}


def saved(name: str, folder: Path) -> tuple[DecoderConfig, dict[str, np.ndarray], GGUF]:
    spec = SPECS[name][0]
    _, params = tiny_model(spec)
    save_gguf(folder / "model.gguf", spec, params, kind="F32", family=name)
    return spec, flat_unrolled(params), GGUF(folder / "model.gguf")


@pytest.mark.parametrize("name", SPECS)
def test_a_file_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    spec, flat, file = saved(name, tmp_path)
    page = families()[name]
    read: Any = page.from_gguf(file.metadata, file)
    assert (read.head_size, read.mlp_size) == (spec.head_size, spec.mlp_size)
    assert page.to_hf(read) == page.to_hf(spec)
    again = flat_unrolled(read_params(page.GGUF_NAMES, file, read))
    assert again.keys() == flat.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)


@pytest.mark.parametrize("name", SPECS)
def test_names_and_shapes_are_those_of_the_converters_tables(name: str, tmp_path: Path) -> None:
    spec, flat, file = saved(name, tmp_path)
    page = families()[name]
    architecture = next(a for a, said in gguf.MODEL_ARCH_NAMES.items() if said == name)
    names = gguf.get_tensor_name_map(architecture, spec.layers)
    published = dict(page.HF_NAMES.save(flat))
    converted = {hf: names.get_name(hf, try_suffixes=(".weight", ".bias")) for hf in published}
    assert None not in converted.values()
    extra = {"rope_freqs.weight"} if name == "llama" else set()
    assert set(converted.values()) | extra == file.shapes.keys()
    for hf, theirs in converted.items():
        assert theirs is not None
        tensor, stored = published[hf], file.read(theirs)
        if name == "gpt2" and hf.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and tensor.ndim == 2:
            tensor = tensor.T  # a `Conv1D`
        if SPECS[name][1] and hf.split(".")[-2] in ("q_proj", "k_proj"):
            assert not np.array_equal(stored, tensor)
            assert stored.shape == tensor.shape
        else:
            np.testing.assert_array_equal(stored, tensor, err_msg=hf)


@pytest.mark.parametrize("name", SPECS)
def test_metadata_are_keys_of_the_gguf_package(name: str) -> None:
    page, spec = families()[name], SPECS[name][0]
    known = {
        value.replace("{arch}", name)
        for part in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for value in vars(part).values()
        if isinstance(value, str)
    }
    metadata = page.to_gguf(spec)
    assert metadata.keys() <= known
    needed = {gguf.Keys.LLM.BLOCK_COUNT, gguf.Keys.LLM.CONTEXT_LENGTH, gguf.Keys.Attention.HEAD_COUNT}
    assert {key.replace("{arch}", name) for key in needed} <= metadata.keys()


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("llama", {"attention_pattern": ("window",), "window": 4}, r"window is 4"),
        ("llama", {"qk_norm": True}, "qk_norm"),
        ("qwen2", {"attention_pattern": ("full", "window"), "window": 4}, "attention_pattern"),
        ("qwen2", {"qkv_bias": False}, "qkv_bias"),
        ("qwen3", {"rope_scaling": RopeScaling(kind="llama3", factor=8.0)}, "rope_scaling"),
        ("gpt2", {"activation": "gelu"}, "activation"),
        ("gpt2", {"attention_scale": 1.0}, "attention_scale"),
        ("gpt2", {"kv_heads": 2}, "4 heads and 2 kv heads"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(name: str, changes: dict[str, Any], says: str) -> None:
    spec = dataclasses.replace(SPECS[name][0], **changes)
    with pytest.raises(ConfigRefused, match=says):
        families()[name].to_gguf(spec)
