"""What is wrong with a configuration: every problem at once, each with its file, line, key and value."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: `"file.yaml:12"`, `"file.yaml"`, or `"command line"`.
        key: the full dotted key (`"model.decoder.heads"`), empty when the whole file is meant.
        value: the value found, as short YAML; `None` when there is none.
        message: the constraint and the remedy.
        nearest: the nearest valid key or choice, when there is a likely one.
    """

    where: str
    message: str
    key: str = ""
    value: str | None = None
    nearest: str | None = None

    def __str__(self) -> str:
        subject = self.key if self.value is None else f"{self.key} = {self.value}"
        hint = f" Did you mean {self.nearest}?" if self.nearest else ""
        return ": ".join(part for part in (self.where, subject, self.message) if part) + hint


class ConfigError(ValueError):
    """A configuration that cannot be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        head = "the configuration cannot be used"
        many = "\n  ".join([f"{head}, {len(lines)} problems:", *lines])
        super().__init__(f"{head}: {lines[0]}" if len(lines) == 1 else many)
