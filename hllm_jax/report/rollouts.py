"""What a run that learns from rewards has said: `rollouts.jsonl` by iterations, in numbers and examples."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
SHOWN = 4  # steps of which answers are shown


@dataclass(frozen=True, kw_only=True)
class RolloutStep:
    """The answers of one iteration.

    Attributes:
        step: updates done after it.
        answers: how many there are, and `scored`, how many of them have a reward.
        score, kl, length: their means; `score` and `kl` are None where no answer has one.
        low, high: the first and the last tenth of the scores lie outside.
        ended: share of the answers that came to an end by themselves.
        best, typical, worst: the answers with the highest, the middle and the lowest score.
    """

    step: int
    answers: int
    scored: int
    score: float | None
    low: float | None
    high: float | None
    kl: float | None
    length: float
    ended: float
    best: Line | None
    typical: Line | None
    worst: Line | None

    @property
    def examples(self) -> list[tuple[str, Line]]:
        """Best, typical and worst answer, each once."""
        found = {"best": self.best, "typical": self.typical, "worst": self.worst}
        lines = [(name, line) for name, line in found.items() if line is not None]
        return [(name, line) for n, (name, line) in enumerate(lines) if line not in [x for _, x in lines[:n]]]


def read_rollouts(path: Path) -> tuple[RolloutStep, ...]:
    """The steps of a table of rollouts, ascending; none if there is no such file. It is read as a stream."""
    if not path.exists():
        return ()
    return tuple(
        summary(step, list(lines)) for step, lines in itertools.groupby(read_lines(path), lambda x: x["step"])
    )


def read_lines(path: Path) -> Iterator[Line]:
    """The lines that are rows of such a table; the torn last one of a killed run is not."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and {"step", "prompt", "completion", "score"} <= line.keys():
                yield line


def summary(step: int, lines: Sequence[Line]) -> RolloutStep:
    """One iteration."""
    ranked = sorted((line for line in lines if line["score"] is not None), key=lambda line: line["score"])
    scores = [float(line["score"]) for line in ranked]
    kl = [float(line["kl"]) for line in lines if line.get("kl") is not None]
    tenth = len(scores) // 10
    return RolloutStep(
        step=int(step),
        answers=len(lines),
        scored=len(scores),
        score=statistics.fmean(scores) if scores else None,
        low=scores[tenth] if scores else None,
        high=scores[-1 - tenth] if scores else None,
        kl=statistics.fmean(kl) if kl else None,
        length=statistics.fmean(line.get("length") or 0 for line in lines),
        ended=statistics.fmean(bool(line.get("ended")) for line in lines),
        best=ranked[-1] if ranked else None,
        typical=ranked[len(ranked) // 2] if ranked else None,
        worst=ranked[0] if ranked else None,
    )


def chosen(steps: Sequence[RolloutStep]) -> list[RolloutStep]:
    """The steps whose answers are shown: the first, the last, and those in even distances between."""
    last = len(steps) - 1
    places = sorted({round(i * last / (SHOWN - 1)) for i in range(SHOWN)}) if steps else []
    return [steps[place] for place in places]
