"""What a compiler says when a program does not fit."""

from __future__ import annotations

import dataclasses
import re

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_OF = re.compile(rf"[Uu]sed {_SIZE} of {_SIZE}")
_AVAILABLE = re.compile(rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)")


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A program that needs more memory than there is.

    Attributes:
        used: bytes that it needs; None where the compiler does not say.
        limit: bytes that there are; None likewise.
        words: the compiler's.
    """

    used: int | None
    limit: int | None
    words: str


def read_refusal(message: str) -> Refusal | None:
    """The refusal in an error of the compiler; None where the error is another one."""
    # Other limits (of a kernel's own memory) are named in the same words, but they are mistakes of ours.
    if "RESOURCE_EXHAUSTED" not in message or "vmem" in message.lower():
        return None
    used = limit = None
    if match := _OF.search(message) or _AVAILABLE.search(message):
        used, limit = _bytes(match[1], match[2]), _bytes(match[3], match[4])
    elif match := re.search(r"(?:allocate|allocating|requires?) ([\d.]+)([KMGT]?)i?B?", message):
        used = _bytes(match[1], match[2])
    words = next((line for line in message.splitlines() if "xceed" in line or "EXHAUSTED" in line), message)
    return Refusal(used, limit, words.strip()[:500])


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])
