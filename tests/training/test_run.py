"""Run folders: what they hold, what may change on resume, and who may use them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from hllm_jax.config import ConfigError, load_config
from hllm_jax.testing.training import ToyBatches, ToyConfig, toy_config, toy_layout, toy_train
from hllm_jax.training import CheckpointError, PlatformError, Run, RunError
from hllm_jax.training.metrics import MetricsFile, read_lines


def test_a_run_folder_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = toy_config(tmp_path, "train.steps=2")
    toy_train(settings)
    said = capsys.readouterr().err
    assert f"{tmp_path}: new run" in said.splitlines()[0]
    assert "config.yaml" in said.splitlines()[0]
    assert "weight_decay" not in said  # the settings themselves are in that file
    assert load_config(ToyConfig, tmp_path / "config.yaml") == settings
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["platform"] == "cpu"
    assert facts["versions"]["jax"] == jax.__version__
    assert [start["step"] for start in facts["starts"]] == [0]
    line = read_lines(tmp_path / "metrics.jsonl")[-1]
    wanted = {
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "mfu",
        "step_time_s",
    }
    assert wanted <= line.keys()
    assert line["step"] == 2


def test_resumed_is_bit_equal_to_uninterrupted(tmp_path: Path) -> None:
    whole = toy_train(toy_config(tmp_path / "whole"))
    parts = tmp_path / "parts"
    with pytest.raises(SystemExit) as stopped:
        toy_train(toy_config(parts), batches=Stopping(5))
    assert stopped.value.code == 0
    resumed = toy_train(toy_config(parts))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert losses(parts) == losses(tmp_path / "whole")
    assert [line["tokens"] for line in read_lines(parts / "metrics.jsonl")] == [
        line["tokens"] for line in read_lines(tmp_path / "whole" / "metrics.jsonl")
    ]


def test_resumed_on_other_devices_goes_on(tmp_path: Path) -> None:
    whole = toy_train(toy_config(tmp_path / "whole"))
    with pytest.raises(SystemExit):
        toy_train(toy_config(tmp_path / "parts"), batches=Stopping(4))
    resumed = toy_train(toy_config(tmp_path / "parts", "strategy=zero3", "mesh.fsdp=8"), devices=8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), resumed.trainable, whole.trainable)


def test_cadence_and_placement_may_change(tmp_path: Path) -> None:
    toy_train(toy_config(tmp_path, "train.steps=4"))
    free = ("train.steps=6", "checkpoint.every=2", "log.every=2", "mesh.data=1", "run.platform=cpu")
    assert int(toy_train(toy_config(tmp_path, *free)).step) == 6


def test_what_the_run_is_may_not_change(tmp_path: Path) -> None:
    toy_train(toy_config(tmp_path, "train.steps=4"))
    changed = ("train.steps=6", "optimizer.weight_decay=0.7", "run.seed=3")
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(
        RunError, match=r"(?s)optimizer.weight_decay: 0.1 -> 0.7.*would change \(run.seed, optimizer"
    ):
        toy_train(toy_config(tmp_path, *changed))
    assert (tmp_path / "config.yaml").read_text() == before
    with Run.start(toy_config(tmp_path, "train.steps=6")) as run:
        run.facts = {"data": "something else"}
        with pytest.raises(CheckpointError, match=r"another data .*run.allow_changes=true"):
            run.restore(toy_layout())
    assert int(toy_train(toy_config(tmp_path, *changed, "run.allow_changes=true")).step) == 6


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run.start(toy_config(tmp_path))
    with pytest.raises(RunError, match=r"another process \(pid \d+\) trains in"):
        Run.start(toy_config(tmp_path))
    run.close()
    Run.start(toy_config(tmp_path)).close()


@pytest.mark.parametrize("folder", ["gs://bucket/run", "gs:/bucket/run", "s3://bucket/run"])
def test_a_run_lives_on_a_disk(folder: str) -> None:
    with pytest.raises(ConfigError, match=rf"run.dir = {folder}: must be a local path for now; use a"):
        load_config(ToyConfig, overrides=[f"run.dir={folder}"])


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_platform_that_is_not_there_is_an_error(tmp_path: Path, platform: str) -> None:
    with pytest.raises(PlatformError, match=f"run.platform={platform}, but JAX found only cpu"):
        Run.start(toy_config(tmp_path / "run", f"run.platform={platform}"))
    assert not (tmp_path / "run").exists()


def test_metrics_are_cut_back_and_a_torn_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3}\n{"step": 2, "eval/loss": 2}\n{"step": 3, "loss": 1}\n{"step": 4, "lo'
    )
    file = MetricsFile(path, after=2)
    file.write({"step": 3, "loss": float("nan")})
    file.close()
    assert file.evaluated == {2}
    assert read_lines(path) == [
        {"step": 1, "loss": 3},
        {"step": 2, "eval/loss": 2},
        {"step": 3, "loss": None},
    ]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(folder / "metrics.jsonl")]


class Stopping:
    """Batches that send this process a SIGTERM when batch `n` is read, as a scheduler would."""

    def __init__(self, n: int) -> None:
        self.batches, self.n = ToyBatches(), n
        self.fingerprint = self.batches.fingerprint

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        if n == self.n:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.batches[n]
