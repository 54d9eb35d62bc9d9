"""The `reward:` section says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hllm_jax.config import ConfigError, config, load_config
from hllm_jax.rl.rewards import RewardConfig


@config
class Root:
    reward: RewardConfig


def read(tmp_path: Path, text: str) -> RewardConfig:
    (tmp_path / "a.yaml").write_text(f"reward: {{{text}}}")
    return load_config(Root, tmp_path / "a.yaml").reward


def test_a_section_from_a_file(tmp_path: Path) -> None:
    found = read(tmp_path, "kind: verifier, path: number, options: {tolerance: 0.5}, on_error: -1")
    assert found == RewardConfig(kind="verifier", path="number", options={"tolerance": 0.5}, on_error=-1.0)
    assert read(tmp_path, "kind: function, path: 'a.py:f', on_error: skip").on_error == "skip"
    assert read(tmp_path, "kind: model, path: runs/reward").timeout == 60.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: judge, path: 'a.py:f'", "reward.kind"),
        ("kind: function, path: a.py", "file.py:function or package.module:function"),
        ("kind: function, path: exact", "set kind: verifier"),
        ("kind: verifier, path: exacr", "or one of exact, number, pattern, poem"),
        ("kind: function, path: 'a.py:f', timeout: 0", "reward.timeout"),
        ("kind: function, path: 'a.py:f', on_error: ignore", "reward.on_error"),
        ("kind: function, path: 'a.py:f', on_error: .nan", "reward.on_error"),
        ("kind: model, path: x, options: {a: 1}", "reward.options.*a model has none"),
        ("kind: model, path: x, timeout: 5", "reward.timeout.*a model has none"),
        ("kind: model, path: x, on_error: skip", "reward.on_error.*a model has none"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(tmp_path, text)


def test_a_model_is_no_host_reward() -> None:
    model: dict[str, Any] = {"kind": "model", "path": "x"}
    with pytest.raises(ValueError, match="runs on the devices"):
        RewardConfig(**model).build()
