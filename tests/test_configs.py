"""Every shipped configuration is valid, and trains two steps when its model and batch are made small."""

from __future__ import annotations

from pathlib import Path

import pytest

from hllm_jax.recipes import home, load_run_config

CONFIGS = sorted((home() / "configs").rglob("*.yaml"))
TRAINING = [path for path in CONFIGS if path.parent.name in ("pretrain", "sft")]

SMALL_MODEL = "{layers: 2, embed: 32, heads: 4, kv_heads: 2, mlp: 64, max_length: 64}"
SMALL_RUN = [
    "train.steps=2",
    "train.epochs=null",
    "train.batch_size=64",
    "train.sequence_length=64",
    "eval.every=null",
    "eval.batches=1",
    "checkpoint.every=null",
    "log.every=1",
    "log.samples.every=0",
    "run.platform=auto",
]


def name(path: Path) -> str:
    return str(path.relative_to(home() / "configs"))


def shrunk(path: Path, folder: Path) -> list[str]:
    """Overrides that keep what a config chooses (optimizer, schedule, remat, strategy) and shrink its sizes."""
    overrides = [*SMALL_RUN, f"run.dir={folder / path.stem}"]
    if path.parent.name == "sft":
        return [*overrides, f"model.load={folder / 'base'}", "base=null"]
    return [*overrides, "model.preset=null", f"model.decoder={SMALL_MODEL}", "tokenizer.vocab_size=1200"]


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_is_valid(path: Path) -> None:
    recipe, config = load_run_config(path)
    assert config.recipe == path.parent.name
    assert callable(recipe.main)


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_config_trains_two_steps(path: Path, tmp_path: Path) -> None:
    if path.parent.name == "sft":
        base = home() / "configs" / "pretrain" / "tiny.yaml"
        recipe, config = load_run_config(base, [*shrunk(base, tmp_path), f"run.dir={tmp_path / 'base'}"])
        recipe.main(config)
    recipe, config = load_run_config(path, shrunk(path, tmp_path))
    state = recipe.main(config)
    assert int(state.step) == 2
    lines = (tmp_path / path.stem / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len(lines) >= 3


def test_the_sweep_saw_the_configs() -> None:
    assert len(CONFIGS) >= 8
    assert {"pretrain/tiny.yaml", "pretrain/book-82m.yaml", "pretrain/book-215m.yaml"} < set(
        map(name, CONFIGS)
    )
    assert {"pretrain/llama2-7b.yaml", "sft/tiny.yaml"} < set(map(name, CONFIGS))
