"""Text of a growing list of ids, never half a character."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StreamDecoder:
    """Decodes one id at a time; everything pushed and the flush together are `decode` of all ids.

    Args:
        table: the bytes of each id.
        strip_space: take away one space at the start of the text.
        hold_space: take away one space at the end of the text; a space is therefore given with what follows.
    """

    def __init__(self, table: Sequence[bytes], strip_space: bool = False, hold_space: bool = False) -> None:
        self._table, self._strip, self._hold = table, strip_space, hold_space
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that became certain with this id: whole characters only, possibly none."""
        if not 0 <= token < len(self._table):
            raise IndexError(f"id {token} is outside the vocabulary of {len(self._table)}")
        piece = self._table[token]
        if self._strip and piece:
            self._strip = False
            piece = piece.removeprefix(b" ")
        if self._hold and piece:
            whole = self._held + piece
            piece = whole.removesuffix(b" ")
            self._held = whole[len(piece) :]
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where the ids stop inside a character."""
        return self._decoder.decode(b"", True)
