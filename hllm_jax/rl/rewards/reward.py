"""Rewards of Python functions: asked in a process of their own, with a time-out, and never silently wrong."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hllm_jax.rl.rewards.config import RewardConfig
from hllm_jax.rl.rewards.errors import RewardError
from hllm_jax.rl.rewards.verifiers import BUILT_IN

LOADING = 120.0  # seconds that a file may take to be imported, if `timeout` is not more
PATIENCE = 3  # calls in a row of which not one answer got a reward
BLOCK = 2**16  # bytes

Missing = dict[int, tuple[str, str]]
"""Row -> (what became of its reward, in a word; what exactly)."""


class Reward:
    """What completions are worth, as a function or a verifier says; see `RewardConfig`.

    Args:
        config: of kind `function` or `verifier`.

    Raises:
        RewardError: the function cannot be loaded.

    Attributes:
        counts: since the start: `asked`, and of these `raised`, `timed_out`, `not_finite`.
        metrics: of the last call: the share of rows without a reward of their own, `reward/failed`, and
            `reward/seconds`.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.counts = dict.fromkeys(("asked", "raised", "timed_out", "not_finite"), 0)
        self.metrics: dict[str, float] = {"reward/failed": 0.0, "reward/seconds": 0.0}
        self.empty_calls = 0
        self.each = config.kind == "verifier"
        self.worker = self.start()

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], records: Sequence[dict[str, Any]]
    ) -> np.ndarray:
        """float32 [B]: the reward of each completion.

        NaN under `on_error: skip`, and only there, says that an answer has no reward: give it weight 0.

        Raises:
            RewardError: there is no reward and `on_error` is `stop` (the message names prompt and
                completion), or three calls in a row gave not one.
            ValueError: the lists are not of one length.
        """
        if not len(prompts) == len(completions) == len(records):
            raise ValueError(
                f"{len(prompts)} prompts, {len(completions)} completions, {len(records)} records"
            )
        begin = time.perf_counter()
        scores, missing = self.ask(list(prompts), list(completions), list(records))
        self.counts["asked"] += len(prompts)
        for kind, _ in missing.values():
            self.counts[kind] += 1
        if missing and self.config.on_error == "stop":
            row = min(missing)
            prompt, completion = short(prompts[row]), short(completions[row])
            raise RewardError(
                f"reward {self.config.path}: {missing[row][1]}; {len(missing)} of {len(prompts)} answers "
                f"have no reward, the first is\n  prompt {prompt}\n  completion {completion}\n"
                "Correct the function, or set reward.on_error to skip or to a number"
            )
        self.empty_calls = self.empty_calls + 1 if missing and len(missing) == len(prompts) else 0
        if self.empty_calls >= PATIENCE:
            raise RewardError(
                f"reward {self.config.path}: {PATIENCE} calls in a row gave not one reward: {missing[0][1]}"
            )
        instead = np.nan if self.config.on_error == "skip" else self.config.on_error
        for row in missing:
            scores[row] = instead
        self.metrics = {
            "reward/failed": len(missing) / max(len(prompts), 1),
            "reward/seconds": time.perf_counter() - begin,
        }
        return scores

    def ask(
        self, prompts: list[str], completions: list[str], records: list[dict[str, Any]]
    ) -> tuple[np.ndarray, Missing]:
        """Scores, and which of them are missing for which reason."""
        scores, missing = np.zeros(len(prompts), np.float32), Missing()
        row, count = 0, len(prompts)
        while row < count:
            if self.worker.ended:
                self.worker = self.start()
            self.worker.send(
                {"prompts": prompts[row:], "completions": completions[row:], "records": records[row:]}
            )
            done, problem = self.hear(row, count, scores, missing)
            if problem is not None:
                # A verifier goes on with the next answer; a function had all of them at once.
                lost = range(done, done + 1 if self.each else count)
                missing.update(dict.fromkeys(lost, problem))
                done = lost.stop
            row = done
        return scores, missing

    def hear(
        self, first: int, count: int, scores: np.ndarray, missing: Missing
    ) -> tuple[int, tuple[str, str] | None]:
        """Read the answers about rows `first` to `count`.

        Returns:
            The first row without an answer (`count` if all have one), and why it has none.
        """
        row = first
        while row < count:
            try:
                answer = self.worker.hear(self.config.timeout)
            except TimeoutError:
                self.worker.end()
                what = "an answer" if self.each else f"{count - first} answers"
                return row, (
                    "timed_out",
                    f"took longer than {self.config.timeout:g} s for {what} and was ended",
                )
            if answer is None:
                self.worker.end()
                return row, ("raised", f"its process ended with status {self.worker.status}")
            if self.each:
                found, errors = [answer.get("score")], {0: answer["error"]} if "error" in answer else {}
            else:
                found = answer["scores"]
                errors = {int(number): text for number, text in answer.get("errors", {}).items()}
            for number, value in enumerate(found):
                if number in errors:
                    missing[row + number] = "raised", f"raised {errors[number]}"
                elif value is None:
                    missing[row + number] = "not_finite", "gave no finite number"
                else:
                    scores[row + number] = value
            row += len(found)
        return row, None

    def start(self) -> Worker:
        """A process with the function loaded.

        Raises:
            RewardError: it cannot be.
        """
        worker = Worker()
        path = BUILT_IN.get(self.config.path, self.config.path) if self.each else self.config.path
        worker.send({"path": sys.path, "function": path, "each": self.each, "options": self.config.options})
        try:
            answer = worker.hear(max(LOADING, self.config.timeout))
        except TimeoutError:
            worker.end()
            raise RewardError(
                f"reward {self.config.path}: importing it takes longer than {LOADING:g} s"
            ) from None
        if answer is None or "error" in answer:
            worker.end()
            why = answer["error"] if answer else f"its process ended with status {worker.status}"
            raise RewardError(f"reward {self.config.path} cannot be loaded: {why}")
        return worker

    def close(self) -> None:
        """End the process."""
        self.worker.end()

    def __enter__(self) -> Reward:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Worker:
    """A process of `worker.serve` and its pipes. It has no accelerator: those belong to this process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from hllm_jax.rl.rewards.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # what it starts itself is ended with it
        )
        self.finalizer = weakref.finalize(self, end, self.process)
        self.read = b""
        self.lines: Iterator[bytes] = iter(())

    @property
    def ended(self) -> bool:
        """Whether there is nobody to ask any more."""
        return not self.finalizer.alive

    @property
    def status(self) -> int | None:
        """The exit status; negative: the signal."""
        return self.process.returncode

    def send(self, message: dict[str, Any]) -> None:
        """Write a line; a process that is gone says so when it is heard."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            self.process.stdin.flush()

    def hear(self, timeout: float) -> dict[str, Any] | None:
        """The next line; None when the process is gone.

        Raises:
            TimeoutError: there is none within so many seconds.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.read:
            ready, _, _ = select.select((pipe,), (), (), max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            block = os.read(pipe, BLOCK)
            if not block:
                # It ends by itself: the status is its own, not that of being killed.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1.0)
                return None
            self.read += block
        line, _, self.read = self.read.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        """Kill it and what it started."""
        self.finalizer()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its whole session, and collect it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def short(text: str) -> str:
    """A text as one line, cut."""
    return repr(text if len(text) <= 200 else text[:199] + "…")
