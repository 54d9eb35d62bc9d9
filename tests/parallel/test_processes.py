"""Several real processes on one machine train as one does, and stop together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hllm_jax.config import ConfigError
from hllm_jax.parallel import distributed
from hllm_jax.parallel.config import DistributedConfig
from hllm_jax.testing.training import toy_config
from hllm_jax.training.checkpoints import Checkpoints, read_variables
from hllm_jax.training.metrics import read_lines

PROGRAM = Path(__file__).with_name("process.py")


def start(folder: Path, processes: int, devices: int, *overrides: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = str(PROGRAM.parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "xla"),
    }
    started = []
    for index in range(processes):
        where = [
            f"distributed.coordinator=localhost:{port}",
            f"distributed.processes={processes}",
            f"distributed.process={index}",
            "distributed.heartbeat_seconds=10",
        ]
        each = [text.replace("{process}", str(index)) for text in overrides]
        command = [sys.executable, str(PROGRAM), str(folder), str(devices), *(where if processes > 1 else ())]
        started.append(
            subprocess.Popen([*command, *each], stderr=subprocess.PIPE, text=True, env=environment)
        )
    return started


def finish(started: list[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str]]:
    try:
        said = [process.communicate(timeout=seconds)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def run(folder: Path, processes: int, devices: int, *overrides: str) -> None:
    for status, said in finish(start(folder, processes, devices, *overrides)):
        assert status == 0, said


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "metrics.jsonl")]


def wait_for(folder: Path, step: int, started: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 90
    while Checkpoints(folder / "checkpoints", own=False).latest() is None or not any(
        line["step"] >= step for line in read_lines(folder / "metrics.jsonl")
    ):
        assert time.monotonic() < deadline, "no step in time"
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.1)


def test_half_given_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        toy_config(tmp_path, "distributed.coordinator=localhost:1234")
    three = ("distributed.processes=2", "distributed.process=2")
    with pytest.raises(ConfigError, match=r"from 0 to 1"):
        toy_config(tmp_path, "distributed.coordinator=localhost:1234", *three)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        toy_config(tmp_path, "distributed.coordinator=localhost", *three)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, 1, 1, "train.steps=20", "train.batch_size=16")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "strategy"),
    [(2, 4, "ddp"), (2, 4, "zero1"), (2, 4, "zero3"), (2, 4, "tensor"), (4, 2, "zero3")],
)
def test_processes_train_as_one(
    tmp_path: Path, alone: Path, processes: int, devices: int, strategy: str
) -> None:
    folder = tmp_path / "run"
    run(folder, processes, devices, "train.steps=20", "train.batch_size=16", f"strategy={strategy}")
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=0, atol=1e-5)
    ours, theirs = (read_variables(f / "checkpoints" / "00000020")["params"] for f in (folder, alone))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-5)
    assert {path.name for path in (folder / "logs").iterdir()} == {
        f"process-{index}.log" for index in range(1, processes)
    }


@pytest.mark.slow
def test_more_and_fewer_processes_go_on(tmp_path: Path, alone: Path) -> None:
    folder = tmp_path / "run"
    common = ("train.batch_size=16", "schedule.warmup=1", "run.allow_changes=true")
    for steps, processes, devices in ((8, 2, 2), (12, 1, 8), (20, 2, 4)):
        # The schedule ends at 20 in the run that this one is compared with.
        run(folder, processes, devices, f"train.steps={steps}", "strategy=zero3", *common)
    whole = tmp_path / "whole"
    for steps in (8, 12, 20):
        run(whole, 1, 1, f"train.steps={steps}", *common)
    np.testing.assert_allclose(losses(folder), losses(whole), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_another_config_is_named(tmp_path: Path) -> None:
    found = finish(start(tmp_path / "run", 2, 1, "train.batch_size=16", "run.seed={process}"))
    for status, said in found:
        assert status == 1
        assert "process 1" in said
        assert "run.seed = 1, process 0 has 0" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "which", "expected"),
    [
        (signal.SIGTERM, [0], 0),
        (signal.SIGTERM, [1], 0),
        (signal.SIGINT, [1], 130),
        (signal.SIGINT, [0, 1], 130),
    ],
)
def test_a_signal_saves_and_ends_all(
    tmp_path: Path, number: signal.Signals, which: list[int], expected: int
) -> None:
    folder = tmp_path / "run"
    started = start(folder, 2, 1, "train.steps=2000", "train.batch_size=16")
    wait_for(folder, 6, started)
    for index in which:
        started[index].send_signal(number)
    for status, said in finish(started):
        assert status == expected, said
    last = Checkpoints(folder / "checkpoints", own=False).latest()
    assert last == read_lines(folder / "metrics.jsonl")[-1]["step"]


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    common = ("train.batch_size=16", "run.allow_changes=true")
    started = start(folder, 2, 1, "train.steps=2000", *common)
    wait_for(folder, 6, started)
    started[1].kill()
    begin = time.monotonic()
    found = finish(started, 60)
    assert time.monotonic() - begin < 60
    assert found[0][0] != 0
    assert f"process 1 ({socket.gethostname()}, pid {started[1].pid}) gone" in found[0][1]
    left = Checkpoints(folder / "checkpoints", own=False).latest()
    assert left is not None
    run(folder, 1, 2, f"train.steps={left + 2}", *common)
    steps = [line["step"] for line in read_lines(folder / "metrics.jsonl")]
    assert steps == list(range(1, left + 3))


@pytest.mark.slow
def test_a_killed_coordinator_ends_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started = start(folder, 2, 1, "train.steps=2000", "train.batch_size=16")
    wait_for(folder, 6, started)
    started[0].kill()
    begin = time.monotonic()
    found = finish(started, 60)
    assert time.monotonic() - begin < 60
    assert found[1][0] not in (0, None)


def test_a_coordinator_that_does_not_answer_is_told() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    config = DistributedConfig(coordinator=address, processes=2, process=1, start_seconds=1)
    with pytest.raises(distributed.DistributedError, match=f"process 1 of 2: nothing answers at {address}"):
        distributed.start(config)


@pytest.mark.slow
def test_a_process_that_does_not_come_is_told(tmp_path: Path) -> None:
    started = start(tmp_path / "run", 2, 1, "train.batch_size=16", "distributed.start_seconds=5")
    started[1].kill()
    status, said = finish(started)[0]
    assert status != 0
    assert "process 0 of 2 still waits for the others at localhost" in said
