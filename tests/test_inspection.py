"""`hllm inspect` on configurations: the numbers are those of the papers and of arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hllm_jax.cli import main
from hllm_jax.inspection import inspect

RECIPE = '''"""A recipe with all sections that inspection reads."""

from hllm_jax.config import config
from hllm_jax.data.config import DataConfig
from hllm_jax.models.config import ModelConfig
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.tokenizers.config import TokenizerConfig
from hllm_jax.training.config import OptimizerConfig, ScheduleConfig, TrainConfig


@config
class Config:
    recipe: str = "small.py"
    model: ModelConfig = ModelConfig(decoder=DecoderConfig())
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig(steps=3, batch_size=4, accumulation=2, sequence_length=10)


def main(config: Config) -> None: ...
'''

SMALL = """recipe: small.py
model: {decoder: {layers: 2, embed: 16, heads: 4, kv_heads: 2, mlp: 8}}
tokenizer: {vocab_size: 600}
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    (tmp_path / "small.py").write_text(RECIPE, encoding="utf-8")
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def test_a_configs_parameters_shapes_and_memory(small: str) -> None:
    found = inspect(small)
    attention = 16 * 4 * (4 + 2) * 2
    parameters = 600 * 16 + 2 * (attention + 3 * 16 * 8 + 2 * 16) + 16
    sizes: list[int] = []
    for shape in found["shapes"].values():
        size = 1
        for axis in shape:
            size *= axis
        sizes.append(size)
    assert found["parameters"] == parameters == sum(sizes)
    assert found["shapes"]["layers_1/attention/key/kernel"] == [16, 2, 4]
    assert found["decoder"]["head_dim"] == 4
    assert found["config"]["train"]["steps"] == 3
    memory = found["memory"]
    assert memory["parameters"] == memory["gradients"] == parameters * 4
    assert memory["optimizer"] == pytest.approx(parameters * 8, abs=64)  # two moments, and counters
    assert memory["logits_per_microbatch_f32"] == 2 * 10 * 600 * 4
    assert memory["kv_cache_per_token_f32"] == 2 * 2 * 2 * 4 * 4


def test_overrides_change_what_is_inspected(small: str) -> None:
    found = inspect(small, ["model.decoder.layers=4", "model.param_dtype=bfloat16"])
    assert found["decoder"]["layers"] == 4
    assert found["memory"]["parameters"] == found["parameters"] * 2


def test_inspect_json_is_alone(small: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", small, "--json"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert {"parameters", "shapes", "config", "memory"} <= set(found)


def test_inspect_shows_equal_layers_once(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", small]) == 0
    shown = capsys.readouterr().out
    assert "layers_0…1/attention/key/kernel" in shown
    assert "layers_1/" not in shown
    assert main(["inspect", "t5-small"]) == 0
    shown = capsys.readouterr().out
    assert "encoder/layers_0…5/mlp/up" in shown
    assert "decoder/layers_0…5/mlp/up" in shown
    assert "layers_1/" not in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "there is no 'nowhere'"),
        (["nowhere.yaml"], "there is no such configuration"),
        (["nowhere", "a=1"], "a=1 changes a configuration"),
    ],
)
def test_a_wrong_target_is_a_clear_error(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *argv]) == 2
    assert message in capsys.readouterr().err
