"""GGUF files that we write: read back by our reader and by the `gguf` package, whole and in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.quants import dequantize

import hllm_jax
from hllm_jax.generation import TextEncoder
from hllm_jax.interop import GGUF
from hllm_jax.interop.gguf_export import KINDS, save_gguf, storage
from hllm_jax.interop.hf import FolderError
from hllm_jax.interop.models import read_params
from hllm_jax.interop.sentence_transformers import Pooling
from hllm_jax.models import EncoderConfig
from hllm_jax.models.families import llama
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.layout import flat_unrolled
from hllm_jax.testing.models import draw_params, tiny_config, tiny_model
from hllm_jax.tokenizers import from_gguf, load_tokenizer
from tests.tokenizers import published

WIDE = tiny_config(embed=64, head_dim=16, mlp=96)


def read_back(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The spec and the flat parameters of a file."""
    file = GGUF(path)
    spec = llama.from_gguf(file.metadata, file)
    return spec, flat_unrolled(read_params(llama.GGUF_NAMES, file, spec))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_float32_there_and_back_is_bit_equal(scan: bool, tied: bool, tmp_path: Path) -> None:
    config = tiny_config(tie_embeddings=tied)
    _, params = tiny_model(config, scan_layers=scan)
    counts = save_gguf(tmp_path / "model.gguf", config, params, kind="F32")
    assert counts == {"F32": 2 + 9 * config.layers + (not tied)}
    spec, again = read_back(tmp_path / "model.gguf")
    assert spec == config
    flat = flat_unrolled(params)
    assert again.keys() == flat.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_type_is_what_the_gguf_package_makes_of_it(kind: Any, tmp_path: Path) -> None:
    _, params = tiny_model(WIDE)
    counts = save_gguf(tmp_path / "model.gguf", WIDE, params, kind=kind)
    assert counts[kind] >= 1 + 7 * WIDE.layers
    reader = GGUFReader(tmp_path / "model.gguf")
    names = {tensor.name: tensor for tensor in reader.tensors}
    flat = flat_unrolled(params)
    for theirs, tensor in llama.GGUF_NAMES.save({path: flat[path] for path in flat}):
        stored = names[theirs]
        wanted = storage(tensor.shape, kind)
        assert stored.tensor_type == GGMLQuantizationType[wanted]
        value = dequantize(np.asarray(stored.data), GGMLQuantizationType[wanted]).reshape(tensor.shape)
        step = {"F32": 0, "F16": 2**-10, "BF16": 2**-7, "Q8_0": 2**-6, "Q5_0": 2**-3, "Q5_1": 2**-3}
        assert np.abs(value - tensor).max() <= step.get(wanted, 2**-2) * np.abs(tensor).max()


def test_rows_that_fill_no_block_are_kept_as_half_floats(tmp_path: Path) -> None:
    config = tiny_config(embed=24)
    _, params = tiny_model(config)
    counts = save_gguf(tmp_path / "model.gguf", config, params, kind="Q4_0")
    assert counts["F16"] == 1 + 7 * config.layers  # no row of this model is a multiple of 32


def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    _, params = tiny_model(config)
    path = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match="'Q3_K' cannot be written; these can: F32"):
        save_gguf(path, config, params, kind="Q3_K")  # type: ignore[arg-type]
    with pytest.raises(ConfigRefused, match=r"logit_softcap is 30\.0"):
        save_gguf(path, tiny_config(logit_softcap=30.0), params, family="llama")
    with pytest.raises(ValueError, match="missing head/kernel"):
        save_gguf(path, tiny_config(tie_embeddings=False), params)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(OSError, match="No space left"):
        save_gguf(path, config, params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["t5", "gpt2", "bert-uncased", "llama2"])
def test_the_tokenizer_goes_with_it(name: str, tmp_path: Path) -> None:
    case = published.read(name)
    tokenizer = load_tokenizer(case.write(tmp_path / "folder"))
    config = tiny_config()
    save_gguf(tmp_path / "model.gguf", config, tiny_model(config)[1], tokenizer=tokenizer)
    # The types that llama.cpp insists on.
    fields = GGUFReader(tmp_path / "model.gguf").fields
    types = {key.removeprefix("tokenizer.ggml."): field.types for key, field in fields.items()}
    items = {"tokens": "STRING", "token_type": "INT32", "scores": "FLOAT32", "precompiled_charsmap": "UINT8"}
    found = {key: types[key] for key in items if key in types}
    assert found == {key: [GGUFValueType.ARRAY, GGUFValueType[items[key]]] for key in found}
    assert len(found) == {"t5": 4, "llama2": 3}.get(name, 2)
    assert types["padding_token_id"] == [GGUFValueType.UINT32]
    assert types["add_bos_token"] == [GGUFValueType.BOOL]
    again = from_gguf(GGUF(tmp_path / "model.gguf").metadata)
    assert again.encode_batch(case.texts) == tokenizer.encode_batch(case.texts)


def test_a_sentence_encoder_goes_without_its_pooler(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"layers": 2, "embed": 24, "heads": 3, "kv_heads": 3, "mlp": 40, "max_length": 32}
    config = EncoderConfig(vocab_size=900, masked_head=False, pair_head=False, **sizes)
    params, path = draw_params(config), tmp_path / "model.gguf"
    tokenizer = load_tokenizer(published.read("bert-uncased").write(tmp_path / "folder"))
    assert config.pooler
    with pytest.raises(ConfigRefused, match=r"no place for this one's pooler.*modules\.json"):
        save_gguf(path, config, params, tokenizer)
    for refused in (Pooling("max"), Pooling(lowercase=True)):
        with pytest.raises(FolderError, match=r"llama\.cpp has only mean and first|GGUF has no place"):
            save_gguf(path, config, params, tokenizer, pooling=refused)
    assert not path.exists()
    save_gguf(path, config, params, tokenizer, kind="F32", pooling=Pooling("first"))
    fields = GGUFReader(path).fields
    assert fields["bert.pooling_type"].contents() == 2  # llama.h: LLAMA_POOLING_TYPE_CLS
    assert fields["tokenizer.ggml.token_type_count"].contents() == 2
    model = hllm_jax.load(path)
    assert isinstance(model, TextEncoder)
    assert model.pooling == Pooling("first", normalize=True)
    assert not model.config.pooler
    bare = {name: leaves for name, leaves in params.items() if name != "pool"}
    assert model.variables["params"].keys() == bare.keys()
    for name, leaf in flat_unrolled(bare).items():
        np.testing.assert_array_equal(flat_unrolled(model.variables["params"])[name], leaf)
