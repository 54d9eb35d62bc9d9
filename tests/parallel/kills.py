"""Kills one of two training processes again and again: `python kills.py FOLDER ROUNDS SEED`.

Everything is imported once and every process is a fork of this one, so a start takes a second. For each round
a line of JSON says what was killed, when, and what the other one did; the test reads them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1  # noqa: F401  (before the forks)

import hllm_jax.training.hooks
import hllm_jax.training.loop
import hllm_jax.training.run  # noqa: F401  (imported before the forks)
from hllm_jax.parallel import distributed
from hllm_jax.testing.training import ToyBatches, toy_config, toy_train
from hllm_jax.training.checkpoints import MANIFEST, MARK, Checkpoints
from hllm_jax.training.metrics import read_lines

#: Updates of the whole run for each round, and between two saves.
STEPS, EVERY = 20, 5


class Slow(ToyBatches):
    """Reads a batch in `seconds`: there is time to be killed."""

    seconds = 0.0

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        return super().__getitem__(n)


def main() -> None:
    folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    steps = STEPS * rounds
    whole, parts = folder / "whole", folder / "parts"
    assert all(wait(pid, 100) == 0 for pid in start(whole, steps, 0.0, folder / "said-whole"))
    for n in range(rounds):
        begin = time.monotonic()
        before = last_step(parts)
        pids = start(parts, steps, 0.02, folder / f"said-{n}")
        # Every other time it is killed while a checkpoint is being written.
        in_save = n % 2 == 1
        wait_until(lambda before=before: last_step(parts) > before, pids)
        if in_save:
            wait_until(lambda: half_saved(parts), pids)
        else:
            time.sleep(chance.uniform(0.0, 0.4))
            # On a busy machine one save follows another: between two of them, if only for a moment.
            wait_until(lambda: not half_saved(parts), pids)
        victim = chance.randrange(2)
        os.kill(pids[victim], signal.SIGKILL)
        half, killed = half_saved(parts), time.monotonic()
        os.waitpid(pids[victim], 0)
        status = wait(pids[1 - victim], 60)
        line = {
            "victim": victim,
            "pid": pids[victim],
            "half_saved": half,
            "status": status,
            "seconds": round(time.monotonic() - killed, 2),
            "said": (folder / f"said-{n}-{1 - victim}").read_text("utf-8"),
            "from": json.loads((parts / "run.json").read_text("utf-8"))["starts"][-1]["step"],
            "seen": last_step(parts),
            "left": Checkpoints(parts / "checkpoints", own=False).latest() or 0,
            "round": round(time.monotonic() - begin, 2),
        }
        print(json.dumps(line), flush=True)
    assert all(wait(pid, 100) == 0 for pid in start(parts, steps, 0.0, folder / "said-last"))


def start(folder: Path, steps: int, seconds: float, said: Path) -> list[int]:
    """Two processes that train; what they say goes to `said-0` and `said-1`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pids = []
    for index in range(2):
        if pid := os.fork():
            pids.append(pid)
            continue
        file = os.open(f"{said}-{index}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 2)
        settings = toy_config(
            folder,
            f"distributed.coordinator=localhost:{port}",
            "distributed.processes=2",
            f"distributed.process={index}",
            "distributed.heartbeat_seconds=5",
            f"train.steps={steps}",
            f"checkpoint.every={EVERY}",
            "schedule.warmup=10",
        )
        jax.config.update("jax_num_cpu_devices", 1)
        distributed.start(settings.distributed)
        batches = Slow(8, 16)
        batches.seconds = seconds
        toy_train(settings, batches, devices=2)
        sys.exit()
    return pids


def last_step(folder: Path) -> int:
    """The last update that a run has logged."""
    path = folder / "metrics.jsonl"
    lines = read_lines(path) if path.exists() else []
    return max((line["step"] for line in lines), default=0)


def half_saved(folder: Path) -> bool:
    """Whether a checkpoint is being written now."""
    marks = (folder / "checkpoints").glob(f"*/{MARK}")
    return any(not (mark.parent / MANIFEST).exists() for mark in marks)


def wait_until(happened: object, pids: list[int]) -> None:
    """Until something has happened, while all processes live."""
    deadline = time.monotonic() + 60
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it does not happen"
        assert all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in pids), "a process ended by itself"
        time.sleep(0.002)


def wait(pid: int, seconds: float) -> int | None:
    """The exit status (negative: the signal) of a process; None where it still runs after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    main()
