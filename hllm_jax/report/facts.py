"""What a report shows beyond the run folder itself: `report.json`, written stage by stage.

Every part is optional. A run folder without the file still has a report, of what its own files say.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "report.json"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One bar of the bits-per-byte comparison.

    Attributes:
        name: who predicted ("This model").
        bits_per_byte: on the held-out text; lower is better.
        note: how ("order 6, counted on 8.1 MB").
        ours: whether it is the model of this report.
    """

    name: str
    bits_per_byte: float
    note: str = ""
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores on one held-out text."""

    scores: tuple[Score, ...]
    heldout: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The answers of successive models to one prompt.

    Attributes:
        prompt: the user's text.
        chat: whether it went through the chat template.
        answers: (stage, text), in the order of training.
    """

    prompt: str
    chat: bool
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class RowToken:
    """One token of the token/weight table.

    Attributes:
        text: what it stands for; bytes that are no character appear as ⟨e4⟩.
        id: its number.
        weight: its weight in the loss when it is the token to predict.
        segment: 1, 2, … for the conversations of the row; 0 is padding.
    """

    text: str
    id: int
    weight: float
    segment: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where text came from, under which licence, and how much of it there is."""

    name: str
    package: str = ""
    licence: str = ""
    stage: str = ""
    counts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of the chain, as the page's list of commands shows it."""

    name: str
    command: str
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The content of `report.json`."""

    title: str = ""
    summary: str = ""
    steps: tuple[Step, ...] = ()
    comparison: Comparison | None = None
    samples: tuple[Sample, ...] = ()
    row: tuple[RowToken, ...] = ()
    row_source: str = ""
    sources: tuple[Source, ...] = ()
    next_commands: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write `report.json` into `folder`, whole or not at all."""
        target = folder / NAME
        partial = target.with_suffix(".json.partial")
        partial.write_text(json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n", "utf-8")
        os.replace(partial, target)
        return target


def read_facts(folder: Path) -> Facts:
    """Read `report.json`; a folder without one has no facts.

    Raises:
        ValueError: if the file is there and is not what `Facts.save` writes.
    """
    path = folder / NAME
    if not path.exists():
        return Facts()
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(Facts).validate_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no report data ({error}); delete it to report without it") from error
