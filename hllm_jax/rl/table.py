"""The table of all rollouts in the run folder: what was asked, what was said, and what it was worth."""

from __future__ import annotations

import json
import math
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hllm_jax.training.hooks import Hook, Moment, regularly
from hllm_jax.training.platform import is_coordinator

NAME = "rollouts.jsonl"
COLUMNS = ("prompt", "completion", "score", "kl", "advantage", "length", "ended")
WAITING = 8  # iterations that may wait to be written before the next one waits for them

Rows = Mapping[str, Sequence[Any] | np.ndarray]
"""Columns of equal length, those of `COLUMNS` and any others."""


class RolloutTable:
    """`rollouts.jsonl`: one JSON object an answer, in the order of steps.

    A line has `step` (the update that it led to) and at least

    - `prompt`, `completion`: texts;
    - `score`: its reward; null where it has none;
    - `kl`: nats between policy and reference over the whole answer;
    - `advantage`: the mean over its tokens;
    - `length`: tokens of the answer; `ended`: whether it came to an end by itself.

    A thread of its own fetches, decodes and writes, an iteration in one append. Only the coordinator writes.

    Args:
        folder: the run folder.
        after: what a run goes on from: lines of later steps are cut off, and a line that was not written to
            its end. 0 for a run that begins.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        self.path = folder / NAME
        self.waiting: queue.Queue[tuple[int, Callable[[], Rows]] | None] = queue.Queue(WAITING)
        self.problem: Exception | None = None
        self.thread: threading.Thread | None = None
        if is_coordinator():
            cut_back(self.path, after)
            self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self.thread = threading.Thread(target=self.work, name="rollouts", daemon=True)
            self.thread.start()

    def add(self, step: int, make: Callable[[], Rows]) -> None:
        """Have the answers of one iteration written; returns at once.

        Args:
            step: updates done when this iteration is over.
            make: gives the columns; called in the thread of the table, where arrays may be fetched and
                decoded. What it reads must not have been donated.

        Raises:
            RuntimeError: an earlier iteration could not be written.
        """
        if self.thread is None:
            return
        self.check()
        self.waiting.put((step, make))

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            RuntimeError: something could not be.
        """
        if self.thread is not None:
            self.waiting.join()
            self.check()

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self.problem is not None:
            raise RuntimeError(f"{self.path}: {self.problem}") from self.problem

    def close(self) -> None:
        """Write what waits and end the thread."""
        if self.thread is not None:
            self.waiting.put(None)
            self.thread.join()
            self.thread = None
            os.close(self.file)
            self.check()

    def hook(self, every: int | None) -> Hook:
        """Everything is written before a checkpoint: goes before `training.save`, with the same `every`."""
        due = regularly(every)

        def wanted(moment: Moment) -> bool:
            return moment.interrupted or due(moment)

        return Hook("rollouts", wanted, lambda moment: self.flush(), close=self.close)

    def work(self) -> None:
        """The thread."""
        while (item := self.waiting.get()) is not None:
            step, make = item
            try:
                if self.problem is None:
                    append(self.file, lines_of(step, make()))
            except Exception as error:
                self.problem = error
            finally:
                self.waiting.task_done()
        self.waiting.task_done()


def append(file: int, block: bytes) -> None:
    """Write all of it; usually the system takes it at once."""
    while block:
        block = block[os.write(file, block) :]


def lines_of(step: int, rows: Rows) -> bytes:
    """The lines of an iteration.

    Raises:
        ValueError: a column is missing, or columns differ in length.
    """
    if missing := [name for name in COLUMNS if name not in rows]:
        raise ValueError(f"step {step}: no column {', '.join(missing)}")
    sizes = {name: len(column) for name, column in rows.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"step {step}: columns of different lengths: {sizes}")
    columns = [
        column.tolist() if isinstance(column, np.ndarray) else [value_of(each) for each in column]
        for column in rows.values()
    ]
    lines = (
        json.dumps({"step": step, **dict(zip(rows, map(finite, row), strict=True))}, ensure_ascii=False)
        for row in zip(*columns, strict=True)
    )
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")


def value_of(value: Any) -> Any:
    """A NumPy scalar as a Python one."""
    return value.item() if isinstance(value, np.generic) else value


def finite(value: Any) -> Any:
    """JSON has no number that is not finite."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def cut_back(path: Path, after: int) -> None:
    """Cut off all lines from the first one of a later step on, or the first one that is no line.

    Steps only rise, so what is cut off is the end of the file: nothing is written anew.
    """
    if not path.exists():
        return
    keep = 0
    with path.open("rb") as file:
        for line in file:
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n") or step > after:
                break
            keep += len(line)
    os.truncate(path, keep)
