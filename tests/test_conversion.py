"""`convert`: every kind of target from a small model, compared with its source, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from hllm_jax.cli import main
from hllm_jax.conversion import ConversionRefused, compare, convert
from hllm_jax.interop import save_hf
from hllm_jax.interop.sentence_transformers import Pooling, read_pooling
from hllm_jax.models import EncoderConfig
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.layout import flat_unrolled
from hllm_jax.testing import ByteTokenizer
from hllm_jax.testing.models import draw_params, tiny_config, tiny_model
from hllm_jax.training.checkpoints import CheckpointError, Checkpoints
from hllm_jax.training.pretrained import load_pretrained

CONFIG = tiny_config(vocab_size=ByteTokenizer().vocab_size + 2, embed=64, head_dim=16, mlp=96)


@pytest.fixture(name="source")
def make_source(tmp_path: Path) -> Path:
    """A Hugging Face folder without a tokenizer."""
    _, params = tiny_model(CONFIG)
    save_hf(tmp_path / "source", CONFIG, params)
    return tmp_path / "source"


@pytest.mark.parametrize(
    ("name", "to", "dtype"),
    [
        ("copy", None, "float32"),
        ("run", "orbax", "float32"),
        ("again", "hf", None),
        ("model.gguf", None, "F32"),
    ],
)
def test_float32_is_the_same_model(name: str, to, dtype, source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / name, to, dtype, verify=True)
    assert done["parameters"] == CONFIG.parameters()
    assert done["max_difference"] == 0
    config, params, tokenizer = load_pretrained(tmp_path / name)
    assert (config, tokenizer) == (CONFIG, None)
    for path, leaf in flat_unrolled(load_pretrained(source).params).items():
        np.testing.assert_array_equal(flat_unrolled(params)[path], leaf)


def test_fewer_bits_cost_what_the_comparison_says(source: Path, tmp_path: Path) -> None:
    half = convert(source, tmp_path / "half", dtype="bfloat16", verify=True)
    assert 0 < half["mean_kl"] < half["tolerance"]
    assert half["max_difference"] > 1e-3
    assert compare(source, tmp_path / "half").max_difference == half["max_difference"]
    with pytest.raises(ConversionRefused, match=r"was not written: as float16 it differs .*limit 1e-12"):
        convert(source, tmp_path / "refused", dtype="float16", verify=True, tolerance=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "source"]


def test_what_is_converted_can_be_loaded_and_not_resumed(source: Path, tmp_path: Path) -> None:
    from hllm_jax.testing.training import toy_layout

    convert(source, tmp_path / "run", "orbax")
    assert jax.tree.leaves(load_pretrained(tmp_path / "run", scan_layers=True).params)
    with pytest.raises(CheckpointError, match="weights only"):
        Checkpoints(tmp_path / "run" / "checkpoints", own=False).restore(toy_layout())


def test_targets_that_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionRefused, match="is there already"):
        convert(source, source)
    with pytest.raises(ConversionRefused, match="--to gguf writes F16, F32"):
        convert(source, tmp_path / "x.gguf", dtype="float32")
    for name, to in (("x", "gguf"), ("x.gguf", "hf")):
        with pytest.raises(ConversionRefused, match=r"a name that ends in \.gguf"):
            convert(source, tmp_path / name, to)
    for verify, tolerance in ((False, 0.1), (True, -1.0), (True, float("nan"))):
        with pytest.raises(ConversionRefused, match="needs --verify, and is to be 0 or more"):
            convert(source, tmp_path / "x", verify=verify, tolerance=tolerance)
    save_hf(tmp_path / "other", tiny_config(), tiny_model(tiny_config())[1])
    with pytest.raises(ConversionRefused, match=rf"has {CONFIG.vocab_size} ids, .* has 67"):
        compare(source, tmp_path / "other")


def test_an_encoder_takes_its_pooling_with_it(tmp_path: Path) -> None:
    sizes = {
        "layers": 1,
        "embed": 24,
        "heads": 3,
        "kv_heads": 3,
        "mlp": 40,
        "max_length": 32,
        "vocab_size": 50,
    }
    config = EncoderConfig(masked_head=False, pair_head=False, **sizes)
    save_hf(tmp_path / "source", config, draw_params(config))
    with pytest.raises(ConfigRefused, match="no place for this one's pooler"):
        convert(tmp_path / "source", tmp_path / "model.gguf")
    types = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
    modules = [{"idx": i, "path": path, "type": types[i]} for i, path in enumerate(("", "1_Pooling"))]
    (tmp_path / "source" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "source" / "1_Pooling").mkdir()
    told = json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    (tmp_path / "source" / "1_Pooling" / "config.json").write_text(told)
    done = convert(tmp_path / "source", tmp_path / "model.gguf", dtype="F32", verify=True)
    assert done["max_difference"] == 0
    assert read_pooling(tmp_path / "model.gguf") == Pooling("first", normalize=True)
    for source in ("source", "model.gguf"):
        for to in ("hf", "orbax"):
            convert(tmp_path / source, tmp_path / f"{source}-{to}", to)
            assert read_pooling(tmp_path / f"{source}-{to}") == read_pooling(tmp_path / source)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "out"), "--verify", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["to"], done["dtype"], done["agreement"]) == ("hf", "float32", 1.0)
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_list_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    found = {family["family"]: family for family in json.loads(capsys.readouterr().out)}
    assert found["llama"]["presets"]["llama-2-7b"] == 6_738_415_616
    assert found["llama"]["writes"] == ["hf", "gguf"]
    assert main(["inspect", "meta-llama/Llama-2-7b-hf", "--json"]) == 0
    llama = json.loads(capsys.readouterr().out)
    assert llama["parameters"] == 6_738_415_616
    assert llama["axes"]["layers_31/attention/key/kernel"] == ["embed", "kv_heads", "head_dim"]
    assert llama["axes"].keys() == llama["shapes"].keys()
