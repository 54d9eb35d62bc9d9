"""SIGKILL at any moment, also in the middle of a save: only updates since the last save are lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from hllm_jax.testing.training import toy_config, toy_layout
from hllm_jax.training import Checkpoints, OptimizerConfig, ScheduleConfig, make_optimizer
from hllm_jax.training.metrics import read_lines

PROGRAM = Path(__file__).with_name("killable.py")


def start(folder: Path, how: str = "never", at: int = 0, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), how, str(at), *overrides]
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(folder / "metrics.jsonl")]


def final_state(folder: Path, steps: int) -> object:
    settings = toy_config(folder)
    optimizer = make_optimizer(OptimizerConfig(), ScheduleConfig(peak=0.03), steps)
    with Checkpoints(folder / "checkpoints", settings.checkpoint.keep) as checkpoints:
        return checkpoints.restore(toy_layout(optimizer=optimizer), steps)[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(folder))[0] == 0
    return folder


@pytest.mark.parametrize(
    ("how", "at"), [("step", 6), ("arrays", 4), ("arrays", 8), ("commit", 4), ("commit", 8)]
)
def test_killed_and_resumed_is_bit_equal(tmp_path: Path, uninterrupted: Path, how: str, at: int) -> None:
    assert finish(start(tmp_path, how, at))[0] == -signal.SIGKILL
    left = Checkpoints(tmp_path / "checkpoints", own=False).steps()
    # A save runs in the background: killed two updates later, it may or may not have been finished.
    assert left == ([4] if at == 8 else []) or (how == "step" and left == [4])
    assert finish(start(tmp_path))[0] == 0
    assert losses(tmp_path) == losses(uninterrupted)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path, 8), final_state(uninterrupted, 8))


def test_full_disk_leaves_the_old_checkpoint_and_a_clear_error(tmp_path: Path, uninterrupted: Path) -> None:
    status, said = finish(start(tmp_path, "full", 8))
    assert status == 1
    assert "saving step 8" in said
    assert "step 4 is saved and intact" in said
    assert finish(start(tmp_path))[0] == 0
    assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    many = ("train.steps=2000", "checkpoint.every=20", "schedule.warmup=10")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert finish(start(whole, "never", 0, *many))[0] == 0
    chance, kills = random.Random(0), 0
    while kills < 20:
        process = start(parts, "never", 0, *many)
        deadline = time.monotonic() + chance.uniform(3, 14)
        while process.poll() is None and time.monotonic() < deadline:
            os.sched_yield()
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
    status, said = finish(start(parts, "never", 0, *many))
    assert status == 0, said
    assert losses(parts) == losses(whole)
    jax.tree.map(np.testing.assert_array_equal, final_state(parts, 2000), final_state(whole, 2000))
