"""How many bits per byte a general compressor needs for the same text."""

from __future__ import annotations

import lzma
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PRESET = 9 | lzma.PRESET_EXTREME
# `xz -9` looks back 64 MiB: training text further away than that cannot help.
WINDOW = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class XzScore:
    """What `xz -9e` needs for held-out text.

    Attributes:
        bits_per_byte: 8 · size(xz(heldout)) / size(heldout): the compressor meets the text unprepared.
        conditioned_bits_per_byte: 8 · (size(xz(train + heldout)) - size(xz(train))) / size(heldout): it has
            just read the training text, as the language model has.
        train_bytes: bytes of training text given (the last 64 MiB at most, the reach of the compressor).
        heldout_bytes: bytes of the scored documents.
        seconds: wall time.
    """

    bits_per_byte: float
    conditioned_bits_per_byte: float
    train_bytes: int
    heldout_bytes: int
    seconds: float


def xz(train: Iterable[str], heldout: Iterable[str]) -> XzScore:
    """Compress the held-out documents alone, and after the training documents.

    Documents are joined by one newline. The file format's own header counts: it is part of what `xz` needs.

    Raises:
        ValueError: if there is no held-out byte.
    """
    start = time.perf_counter()
    tested = _join(heldout)
    if not tested:
        raise ValueError("an xz score needs at least one byte of held-out text")
    known = _join(train)[-max(WINDOW - len(tested), 0) :]
    alone = len(lzma.compress(tested, preset=PRESET))
    prepared = len(lzma.compress(known + tested, preset=PRESET)) - len(lzma.compress(known, preset=PRESET))
    return XzScore(
        bits_per_byte=8 * alone / len(tested),
        conditioned_bits_per_byte=8 * prepared / len(tested),
        train_bytes=len(known),
        heldout_bytes=len(tested),
        seconds=time.perf_counter() - start,
    )


def _join(texts: Iterable[str]) -> bytes:
    return b"\n".join(text.encode() for text in texts)
