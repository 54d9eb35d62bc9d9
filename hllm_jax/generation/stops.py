"""Stop strings in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may become one.

    Where several stop strings match, the one that begins first wins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take the next piece, return what is certain to stand before any stop string."""
        if self.found:
            return ""
        held = self._held + text
        starts = [start for stop in self._stops if (start := held.find(stop)) >= 0]
        # Two stops that overlap: "ab" is complete in "xab", yet "xabc" may be one as well and began before.
        end = min([*starts, len(held) - self._unfinished(held)])
        if starts and end == min(starts):
            self.found, self._held = True, ""
        else:
            self._held = held[end:]
        return held[:end]

    def flush(self) -> str:
        """The end of the text has come: what was held back is text, up to a stop string if one is in it."""
        held, self._held = self._held, ""
        starts = [start for stop in self._stops if (start := held.find(stop)) >= 0]
        if starts:
            self.found = True
            return held[: min(starts)]
        return held

    def _unfinished(self, text: str) -> int:
        """Length of the longest end of `text` that is a proper beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(len(stop) > size and stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
