"""What a transform gets and what it is: pieces of documents in, one row of a batch out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hllm_jax.data.order import Draws

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.tokenization import Tokenization

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document.

    Attributes:
        tokens: int32 [n].
        marks: uint8 [n]: weights, or whether a token begins a word, as the store has them; None: neither.
        document: number of the document.
        start: the first unit of the document that is in the piece.
        key: integers that say whose random numbers this piece draws: seed and pass.
        sentence_ends: int64, ascending: where sentences end inside the piece, its own end not included.
        labels: int32: what the store has of the whole document.
        number: of the document among those of all sources.
    """

    tokens: np.ndarray
    marks: np.ndarray | None
    document: int
    start: int
    key: tuple[int, ...]
    sentence_ends: np.ndarray
    labels: np.ndarray
    number: int

    def draws(self, purpose: int) -> Draws:
        """Random numbers of this piece for one purpose; they do not depend on the row that it stands in."""
        return Draws(*self.key, self.document, self.start, purpose)


class Transform(Protocol):
    """How pieces of documents become rows of an objective; a pure function of the pieces.

    Attributes:
        form: what the tokens of the store must have.
        overlap: tokens that a piece reads beyond its units; see `Room`.
        passes: after so many epochs the same rows come again; None: never.
    """

    form: Tokenization
    overlap: int
    passes: int | None

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Which pieces are in which row."""
        ...

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        ...

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill row `line` of a batch that was empty there."""
        ...


def blank(rows: int, fields: Mapping[str, tuple[int, ...]], pad_id: int) -> Batch:
    """Arrays of padding: the shape of a row by name. Ids are the pad id, everything else 0."""
    return {
        name: np.full((rows, *shape), pad_id if name.endswith(("tokens", "targets")) else 0, _dtype(name))
        for name, shape in fields.items()
    }


def _dtype(name: str) -> type[np.float32] | type[np.int32]:
    return np.float32 if name.endswith(("weights", "margins")) else np.int32
