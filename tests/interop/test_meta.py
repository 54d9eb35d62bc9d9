"""LLaMA in Meta's names out of files: shards, wrappers, what such files leave out, and what is refused.

PyTorch is not needed here: what `read_pth` gives for a file is written down as it is. `test_meta_peers.py`
reads files that PyTorch wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hllm_jax
from hllm_jax.interop import MetaCheckpoint, PthError, Stored, meta, read_config, read_model, read_tokenizer
from hllm_jax.interop.models import UnreadableModel, read_params
from hllm_jax.models.families.llama_meta import META_NAMES, from_params
from hllm_jax.models.families.table import TensorsError
from hllm_jax.tokenizers import TokenizerError
from tests.models.families.contract import TOLERANCE, apply
from tests.models.families.test_llama_meta import CASES, as_meta
from tests.tokenizers.published import read as read_recorded

#: Groups of queries share keys, heads are wider than the stream divided by their number.
CASE = next(case for case in CASES if case.name == "grouped_untied")
#: Sizes that shapes say, but for the number of heads.
PLAIN = next(case for case in CASES if case.name == "plain_untied")
SPEC = CASE.spec
# The recorded vocabulary is odd, and two shards have as many rows each: an id that no input has is added.
WHOLE = {
    name: np.pad(array, ((0, 1), (0, 0))) if len(array) == SPEC.vocab_size else array
    for name, array in as_meta(CASE).arrays.items()
}
PARAMS: dict[str, Any] = {
    "dim": SPEC.embed,
    "n_layers": SPEC.layers,
    "n_heads": SPEC.heads,
    "n_kv_heads": SPEC.kv_heads,
    "head_dim": SPEC.head_size,
    "hidden_dim": SPEC.mlp_size,
    "vocab_size": -1,
    "norm_eps": SPEC.norm_eps,
    "rope_theta": SPEC.rope_theta,
    "max_seq_len": SPEC.max_length,
}


def stored(arrays: Mapping[str, np.ndarray]) -> dict[str, Stored]:
    """What `read_pth` gives for a state dict."""
    return {name: Stored(array.shape, lambda array=array: array) for name, array in arrays.items()}


def cut(name: str, embedding: int) -> int | None:
    """The axis along which Meta's parallel layers cut a matrix: ColumnParallel 0, RowParallel 1."""
    last = name.split(".")[-2]
    if last == "tok_embeddings":
        return embedding
    return {"wo": 1, "w2": 1}.get(last, None if last.endswith("norm") else 0)


def shards(whole: Mapping[str, np.ndarray], count: int, embedding: int = 1) -> dict[str, dict[str, Stored]]:
    """Weights as Meta would lay them out for a group of devices."""
    files: dict[str, dict[str, Stored]] = {}
    for number in range(count):
        parts = {
            name: array if (axis := cut(name, embedding)) is None else np.split(array, count, axis)[number]
            for name, array in whole.items()
        }
        files[f"consolidated.{number:02d}.pth"] = stored(parts)
    return files


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("embedding", [0, 1], ids=["vocabulary", "channels"])
def test_shards_are_joined_to_the_model_that_they_are_of(count: int, embedding: int) -> None:
    joined = MetaCheckpoint("7b", shards(WHOLE, count, embedding), PARAMS)
    assert joined.shapes == {name: array.shape for name, array in WHOLE.items()}
    for name, array in WHOLE.items():
        np.testing.assert_array_equal(joined.read(name), array, err_msg=name)
    spec = from_params(joined.params, joined)
    ours = apply(spec, read_params(META_NAMES, joined, spec), CASE.inputs)
    logits = np.asarray(ours["logits"])[..., : SPEC.vocab_size]
    assert np.abs(logits - CASE.outputs["plain/logits"]).max() <= TOLERANCE


def test_wrappers_and_llama2c_dicts_are_unwrapped() -> None:
    args = {key: value for key, value in PARAMS.items() if key != "vocab_size"} | {"dropout": 0.1}
    wrapped = {f"module._orig_mod.{name}": array for name, array in WHOLE.items()}
    held = {"model": stored(wrapped), "model_args": args, "iter_num": 7, "optimizer": {"state": {}}}
    opened = MetaCheckpoint("ckpt.pt", {"ckpt.pt": held})
    assert set(opened.shapes) == set(WHOLE)
    assert opened.params == args
    assert from_params(opened.params, opened).dropout == 0.1


def test_weights_alone_are_the_books_or_need_a_number_of_heads() -> None:
    wanted, held = PLAIN.spec, stored(as_meta(PLAIN).arrays)
    said = {"n_heads": wanted.heads, "norm_eps": wanted.norm_eps, "max_seq_len": 99}
    opened = MetaCheckpoint("x.pth", {"x.pth": held}, said)
    spec = from_params(opened.params, opened)
    assert (spec.heads, spec.kv_heads, spec.mlp_size) == (wanted.heads, wanted.kv_heads, wanted.mlp_size)
    assert (spec.layers, spec.vocab_size, spec.max_length) == (wanted.layers, wanted.vocab_size, 99)
    with pytest.raises(TensorsError, match=r"x\.pth: no shape says how many heads .*params\.json .*n_heads"):
        MetaCheckpoint("x.pth", {"x.pth": held})
    for heads in (0, "4", 5):
        with pytest.raises(TensorsError, match="heads do not fit a stream"):
            MetaCheckpoint("x.pth", {"x.pth": held}, {"n_heads": heads})
    foreign = {"model.embed_tokens.weight": WHOLE["tok_embeddings.weight"]}
    with pytest.raises(TensorsError, match=r"holds no matrix tok_embeddings\.weight"):
        MetaCheckpoint("pytorch_model.bin", {"pytorch_model.bin": stored(foreign)})


def test_tensors_that_do_not_fit_are_named() -> None:
    wrong = {name: array for name, array in WHOLE.items() if name != "norm.weight"}
    wrong["layers.0.attention.bias"] = np.zeros(3, np.float32)
    wrong["layers.1.feed_forward.w2.weight"] = wrong["layers.1.feed_forward.w2.weight"].T
    opened = MetaCheckpoint("x.pth", {"x.pth": stored(wrong)}, PARAMS)
    with pytest.raises(TensorsError) as caught:
        read_params(META_NAMES, opened, from_params(opened.params, opened))
    assert f"missing: norm.weight [{SPEC.embed}]" in str(caught.value)
    assert "not known: layers.0.attention.bias [3]" in str(caught.value)
    assert f"w2.weight: expected {[SPEC.embed, SPEC.mlp_size]}" in str(caught.value)


def test_shards_that_are_missing_or_differ_are_named(tmp_path: Path) -> None:
    two = shards(WHOLE, 2)
    first, second = two
    with pytest.raises(TensorsError, match=r"7b: .* there are to be 2 shards .*01\.pth.*; there are 1"):
        MetaCheckpoint("7b", {first: two[first]}, PARAMS)
    for change, says in (
        ({"norm.weight": WHOLE["norm.weight"] + 1}, "norm.weight differs in consolidated.01.pth"),
        ({"output.weight": WHOLE["output.weight"]}, "output.weight has another shape in each shard"),
        ({"more.weight": WHOLE["norm.weight"]}, "do not both hold more.weight"),
    ):
        with pytest.raises(TensorsError, match=says):
            MetaCheckpoint("7b", {first: two[first], second: two[second] | stored(change)}, PARAMS).read(
                "norm.weight"
            )

    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    with pytest.raises(TensorsError, match=r"consolidated\.00\.pth is missing, there is no shard"):
        read_config(tmp_path)
    (tmp_path / "consolidated.00.pth").touch()
    (tmp_path / "consolidated.02.pth").touch()
    with pytest.raises(TensorsError, match=r"consolidated\.01\.pth is missing, there is consol.*00.*02"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ([1, 2], "x.pth holds a list, expected a dict of tensors"),
        ({}, "x.pth holds no tensors"),
        ({"epoch": 3, "state": {}}, "x.pth holds epoch, state: expected tensors .*'epoch' is a int"),
        ({"model": {"a": 1}}, "x.pth holds a: expected tensors .*'a' is a int"),
    ],
)
def test_what_is_no_state_dict_is_refused(held: Any, says: str) -> None:
    with pytest.raises(TensorsError, match=says):
        MetaCheckpoint("x.pth", {"x.pth": held})


def test_without_pytorch_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "x.pth"
    path.write_bytes(b"anything")
    with pytest.raises(PthError, match=r"x\.pth is a checkpoint of PyTorch.*pip install torch.*safetensors"):
        hllm_jax.load(path)


def test_a_folder_loads_with_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = read_recorded("llama2")
    size = recorded.expected["size"]
    wider = {name: np.resize(WHOLE[name], (size, SPEC.embed)) for name in ("tok_embeddings.weight",)}
    rest = {name: array for name, array in WHOLE.items() if name != "output.weight"}
    monkeypatch.setattr(meta, "read_pth", lambda path: stored(rest | wider))
    (tmp_path / "consolidated.00.pth").touch()
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    assert read_model(tmp_path).tokenizer is None

    (tmp_path / "tokenizer.model").write_bytes(recorded.files["tokenizer.model"])
    config, params, tokenizer = read_model(tmp_path)
    assert config.vocab_size == size
    assert params["embed"]["embedding"].shape == (size, SPEC.embed)
    assert tokenizer is not None
    assert tokenizer.encode("Hello") == read_tokenizer(tmp_path).encode("Hello")

    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match=r"list of byte pairs \(tiktoken\).*tokenizer\.json is needed"):
        read_model(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"n_heads": "many"}))
    with pytest.raises(UnreadableModel, match="n_heads is 'many', expected a whole number") as caught:
        read_model(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"moe_args": {"num_experts": 8}}))
    with pytest.raises(UnreadableModel, match="moe_args"):
        read_model(tmp_path)
