"""One of two processes is killed at random moments, also in the middle of a save: the run always goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hllm_jax.training.checkpoints import read_variables
from hllm_jax.training.metrics import read_lines

PROGRAM = Path(__file__).with_name("kills.py")

#: Each takes about seven seconds; `HLLM_TEST_KILLS=20` is the full proof.
ROUNDS = int(os.environ.get("HLLM_TEST_KILLS", "6"))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROGRAM.parents[2]),
        "XLA_FLAGS": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(ROUNDS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said = {path.name: path.read_text("utf-8")[-500:] for path in sorted(tmp_path.glob("said-*"))}
    assert done.returncode == 0, (done.stderr, said)
    # Gloo writes to standard output too.
    rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rounds) == ROUNDS
    left = 0
    for each in rounds:
        assert each["status"] not in (0, None), "the other process does not end, or as if nothing had been"
        assert each["seconds"] < 60
        name = f"process {each['victim']} ({socket.gethostname()}, pid {each['pid']})"
        if each["victim"]:
            assert f"{name} gone" in each["said"]
        else:
            begin, _, later = each["said"].partition(f"the leader task is {name}")
            assert later, begin
            assert f"{name}, the coordinator" in later or "leader task" in later, "the watch says it, or JAX"
        # It went on from the newest save. One save may not have been finished; the next begins after it.
        assert each["from"] == left
        assert each["left"] >= max(left, (each["seen"] - 1) // 5 * 5 - 5)
        left = each["left"]
    assert any(each["half_saved"] for each in rounds)
    assert any(not each["half_saved"] for each in rounds)
    assert {each["victim"] for each in rounds} == {0, 1}

    losses = [read_lines(tmp_path / run / "metrics.jsonl") for run in ("parts", "whole")]
    assert [line["step"] for line in losses[0]] == list(range(1, len(losses[1]) + 1))
    assert [line["loss"] for line in losses[0]] == [line["loss"] for line in losses[1]]
    last = f"checkpoints/{len(losses[1]):08d}"
    ours, theirs = (read_variables(tmp_path / run / last)["params"] for run in ("parts", "whole"))
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key])
