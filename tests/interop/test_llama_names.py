"""The two-way tables: bit-exact round trips, the GGUF permutation, and strict sets of names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.interop import HFFolder, save_hf, write_safetensors
from hllm_jax.interop.models import UnreadableModel, read_params
from hllm_jax.models import DecoderConfig
from hllm_jax.models.families import llama, presets
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Arrays, Table, TensorsError
from hllm_jax.nn import RopeScaling
from hllm_jax.testing.models import tiny_config, tiny_model
from tests.interop.doubles import read_cases


class Unread(Arrays):
    """A checkpoint of which nothing may be read."""

    def read(self, name: str) -> np.ndarray:
        raise AssertionError(f"{name} was read before names and shapes were compared")


def held(tensors: dict[str, np.ndarray]) -> Arrays:
    """A checkpoint that was never a file."""
    return Arrays("the checkpoint", tensors)


def flat(params: Any) -> dict[str, np.ndarray]:
    return {"/".join(path): leaf for path, leaf in flatten_dict(params).items()}


@pytest.mark.parametrize("table", [llama.HF_NAMES, llama.GGUF_NAMES], ids=["hf", "gguf"])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_is_bit_equal_both_ways(table: Table, tied: bool) -> None:
    config = tiny_config(tie_embeddings=tied, layers=12)
    _, params = tiny_model(config)
    theirs = dict(table.save(flat(params)))
    assert len(theirs) == 2 + 9 * 12 + (not tied)
    assert all(theirs[name].shape == shape for name, shape in held(theirs).shapes.items())
    again = flat(read_params(table, held(theirs), config))
    assert again.keys() == flat(params).keys()
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
    for name, tensor in dict(table.save(again)).items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def test_gguf_rows_of_q_and_k_are_those_of_hf_permuted_as_llama_cpp_does() -> None:
    config = tiny_config()
    _, params = tiny_model(config)
    hf, gguf = dict(llama.HF_NAMES.save(flat(params))), dict(llama.GGUF_NAMES.save(flat(params)))
    for theirs, name, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2), ("v_proj", "attn_v", 0)):
        weight = hf[f"model.layers.1.self_attn.{theirs}.weight"]
        if heads:  # the converter of llama.cpp, `LlamaModel.permute`
            weight = weight.reshape(heads, 2, 5, 24).swapaxes(1, 2).reshape(weight.shape)
        np.testing.assert_array_equal(gguf[f"blk.1.{name}.weight"], weight)


def test_every_wrong_name_and_shape_is_named_before_anything_is_read() -> None:
    config = tiny_config()
    _, params = tiny_model(config)
    theirs = dict(llama.HF_NAMES.save(flat(params)))
    del theirs["model.norm.weight"]
    theirs["model.layers.1.mlp.gate_proj.weights"] = theirs.pop("model.layers.1.mlp.gate_proj.weight")
    theirs["model.layers.2.mlp.up_proj.weight"] = np.zeros((1, 1), np.float32)
    theirs["model.layers.0.self_attn.k_proj.weight"] = np.zeros((24, 20), np.float32)
    theirs["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros((5,), np.float32)
    with pytest.raises(TensorsError) as caught:
        read_params(llama.HF_NAMES, Unread("the checkpoint", theirs), config)
    said = str(caught.value)
    assert "missing: model.norm.weight [24]" in said
    assert "missing: model.layers.1.mlp.gate_proj.weight [40, 24] (nearest in the file: " in said
    assert "not known: model.layers.1.mlp.gate_proj.weights [40, 24]" in said
    assert "not known: model.layers.2.mlp.up_proj.weight [1, 1]" in said
    assert "k_proj.weight: expected [20, 24], found [24, 20]" in said
    assert "inv_freq" not in said


def test_a_stored_head_must_repeat_the_embedding_it_is_tied_to() -> None:
    config = tiny_config()
    _, params = tiny_model(config)
    theirs = dict(llama.HF_NAMES.save(flat(params)))
    theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"].copy()
    read_params(llama.HF_NAMES, held(theirs), config)
    theirs["lm_head.weight"][3, 3] += 1
    with pytest.raises(TensorsError, match="tie_word_embeddings"):
        read_params(llama.HF_NAMES, held(theirs), config)


def test_both_spellings_of_rope_are_read_and_unknown_scaling_is_refused() -> None:
    published = read_cases()["grouped_tied"].config
    assert "rope_theta" not in published
    assert llama.from_hf(published).rope_theta == 50000.0
    old = {k: v for k, v in published.items() if k != "rope_parameters"} | {"rope_theta": 7.0}
    assert llama.from_hf(old).rope_theta == 7.0
    scaled = llama.from_hf(old | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert scaled.rope_scaling == RopeScaling(kind="linear", factor=2.0)
    with pytest.raises(ConfigRefused, match="RoPE scaling 'wave', only 'default', 'linear' and 'llama3'"):
        llama.from_hf(old | {"rope_scaling": {"type": "wave", "factor": 2.0}})
    with pytest.raises(ConfigRefused, match="'llama3' lacks 'low_freq_factor'"):
        llama.from_hf(old | {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}})
    with pytest.raises(ConfigRefused, match="no 'hidden_size'"):
        llama.from_hf({k: v for k, v in old.items() if k != "hidden_size"})


def test_a_key_that_is_not_obeyed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    published = read_cases()["grouped_tied"].config
    llama.from_hf(published)
    assert not caplog.records
    llama.from_hf(published | {"attention_sinks": 4})
    assert "attention_sinks" in caplog.text


def test_export_refuses_what_the_format_cannot_say() -> None:
    with pytest.raises(ConfigRefused, match=r"logit_softcap is 30.0"):
        llama.to_hf(tiny_config(logit_softcap=30.0))
    with pytest.raises(ConfigRefused, match="interleaved"):
        llama.to_hf(tiny_config(rope_pairing="interleaved"))


@pytest.mark.parametrize("scan", [False, True])
def test_a_saved_folder_reads_back_bit_equal(scan: bool, tmp_path: Path) -> None:
    config = tiny_config(mlp=40, tie_embeddings=False)
    _, params = tiny_model(config, scan_layers=scan)
    save_hf(tmp_path, config, params)
    folder = HFFolder(tmp_path)
    assert llama.from_hf(folder.config) == config
    again = flat(read_params(llama.HF_NAMES, folder, config, scan_layers=scan))
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
    assert not list(tmp_path.glob("*.partial"))


def test_saving_refuses_parameters_of_another_model(tmp_path: Path) -> None:
    _, params = tiny_model(tiny_config())
    with pytest.raises(UnreadableModel, match="missing head/kernel"):
        save_hf(tmp_path, tiny_config(tie_embeddings=False), params)
    assert not list(tmp_path.iterdir())


def test_shards_are_read_through_their_index_and_checked_against_it(tmp_path: Path) -> None:
    import json

    config = tiny_config()
    _, params = tiny_model(config)
    theirs = dict(llama.HF_NAMES.save(flat(params)))
    names = sorted(theirs)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        write_safetensors(tmp_path / file, [(name, theirs[name]) for name in held])
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "config.json").write_text(json.dumps(llama.to_hf(config)))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    again = flat(read_params(llama.HF_NAMES, HFFolder(tmp_path), config))
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(again[path], leaf)

    index["weight_map"][names[0]] = "b.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"is in b\.safetensors, which does not hold it"):
        HFFolder(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard b\.safetensors is missing"):
        HFFolder(tmp_path)
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not the name of a file in the folder"):
        HFFolder(tmp_path)


def test_gguf_metadata_to_spec() -> None:
    metadata = {
        "llama.block_count": 30,
        "llama.context_length": 8192,
        "llama.embedding_length": 576,
        "llama.feed_forward_length": 1536,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.vocab_size": 49152,
        "llama.rope.dimension_count": 64,
    }
    spec = llama.from_gguf(metadata, held({}))
    expected: DecoderConfig = presets()["smollm2-135m"]
    assert (spec.parameters(), spec.norm_eps, spec.rope_theta, spec.head_size) == (
        expected.parameters(),
        1e-5,
        100000.0,
        64,
    )
    assert spec.rope_pairing == "half"
    assert not llama.from_gguf(metadata, held({"output.weight": np.empty((1, 1))})).tie_embeddings
    with pytest.raises(ConfigRefused, match=r"rope\.dimension_count 32, only 64"):
        llama.from_gguf(metadata | {"llama.rope.dimension_count": 32}, held({}))
    with pytest.raises(ConfigRefused, match="scaling 'yarn'"):
        llama.from_gguf(metadata | {"llama.rope.scaling.type": "yarn"}, held({}))
    with pytest.raises(ConfigRefused, match=r"llama\.block_count"):
        llama.from_gguf({k: v for k, v in metadata.items() if k != "llama.block_count"}, held({}))
