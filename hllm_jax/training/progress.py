"""The line that shows a run is alive."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Where nobody watches live (a file, a CI log), a line this often.
QUIET_SECONDS = 10.0


class ProgressLine:
    """A live line in a terminal, now and then a plain one elsewhere.

    Args:
        console: where to.
        steps: updates in all.
        done: updates done before.
        live: draw at all.
    """

    def __init__(self, console: Console, steps: int, done: int, live: bool) -> None:
        self._console = console
        self._steps = steps
        self._printed = 0.0
        self._live = live and console.is_terminal
        self._show = live
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not self._live, refresh_per_second=4
        )
        self._task = self._bar.add_task("train", total=steps, completed=done, text="")
        self._bar.start()

    def show(self, line: Mapping[str, Any]) -> None:
        """A line was logged."""
        step = line["step"]
        text = describe(line)
        self._bar.update(self._task, completed=step, text=text)
        now = time.monotonic()
        if self._show and not self._live and (now - self._printed > QUIET_SECONDS or step == self._steps):
            self._printed = now
            left = (self._steps - step) * float(line.get("step_time_s") or 0)
            self._console.print(f"step {step}/{self._steps}  {text}  {left:.0f} s left", soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        self._bar.stop()


def describe(line: Mapping[str, Any]) -> str:
    """Loss, tokens per second and share of the peak, for people."""
    text = f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s"
    if line.get("mfu") is not None:
        text += f"  {100 * line['mfu']:.1f} % of peak"
    return text
