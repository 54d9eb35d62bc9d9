"""Plans of an epoch, pure functions of (lengths, seed, epoch): which part of which document is in which row.

A document of n tokens is a stream of n-1 (input, target) pairs, or of n tokens where a row has its targets
from the same tokens (masked language models and their kin): its *units*.

- `ConcatPlan` joins the pair streams of all documents in a random order and cuts windows of L pairs: every
  pair stands in exactly one row, and only the last row of an epoch has padding.
- `FirstFitPlan` packs pieces of documents into rows.

Both shuffle the rows too, so that a batch is not a run of windows of one book. An epoch has a *pass*: what
the rows are made of depends on the pass, their order on the epoch. Usually they are the same number; with
`passes`, epoch e has pass e mod `passes`, so that the same rows come again in another order.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hllm_jax.data.items import Items, Segment
from hllm_jax.data.order import permutation
from hllm_jax.data.packing import pack_sizes, place_items

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCUMENTS, ROWS = 0, 1  # which of an epoch's two orders


class Plan(Protocol):
    """What a row is made of."""

    rows: int
    """Rows in one epoch; the same in every epoch."""
    stats: dict[str, int]

    def segments(self, epoch: int, row: int) -> Sequence[Segment]:
        """The segments of a row in order; together they fit into it."""
        ...


def pass_of(epoch: int, passes: int | None) -> int:
    """The pass of an epoch."""
    return epoch if passes is None else epoch % passes


class ConcatPlan:
    """Concatenate, then split.

    Args:
        lengths: int [N], tokens of each document, all at least 2.
        sequence_length: L, pairs in a row.
        seed: of the order.
        shuffle: a random order of documents and rows in every epoch; else as they come.
        trained: trained targets in all documents together (only reported).
        passes: see the head of this file.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
        trained: int | None = None,
        passes: int | None = None,
    ) -> None:
        self.pairs = np.asarray(lengths, np.int64) - 1
        self.length, self.seed, self.shuffle, self.passes = sequence_length, seed, shuffle, passes
        self.total = int(self.pairs.sum())
        self.rows = -(-self.total // sequence_length)
        self.stats = {
            "documents": len(self.pairs),
            "rows": self.rows,
            "pairs": self.total,
            "padding": self.rows * sequence_length - self.total,
            "trained_tokens": self.total if trained is None else trained,
            "cut": int(self.rows - 1) if self.total else 0,
        }
        # Two epochs: a batch may straddle the end of one.
        self.epoch = functools.lru_cache(maxsize=2)(self.compute_epoch)

    def compute_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(order of the documents, end of each in the joined stream, window of each row)."""
        if self.shuffle:
            documents = permutation(len(self.pairs), self.seed, pass_of(epoch, self.passes), DOCUMENTS)
            windows = permutation(self.rows, self.seed, epoch, ROWS)
        else:
            documents, windows = np.arange(len(self.pairs)), np.arange(self.rows)
        return documents, np.cumsum(self.pairs[documents]), windows

    def segments(self, epoch: int, row: int) -> list[Segment]:
        """The documents that the row's window of the joined stream touches."""
        documents, ends, windows = self.epoch(epoch)
        at = int(windows[row]) * self.length
        stop = min(at + self.length, self.total)
        place = int(np.searchsorted(ends, at, "right"))
        found = []
        while at < stop:
            document, end = int(documents[place]), int(ends[place])
            count = min(end, stop) - at
            if count:  # a document of one token has no pair
                found.append(Segment(document, at - (end - int(self.pairs[document])), count))
            at += count
            place += 1
        return found


class FirstFitPlan:
    """Pieces of documents packed into rows, longest first, each into the fullest row that still has room.

    All pieces of one size are alike to the packing, so it runs on the histogram of sizes (Krell et al.
    2021, "Efficient Sequence Packing without Cross-contamination", section 3), whose cost does not grow with
    the number of documents. Which piece of a size goes where is drawn anew in every pass; how many rows
    there are is not.

    Args:
        items: the pieces.
        sizes: int [items], the room each takes; None: its units.
        capacity: room of a row.
        seed: of the order.
        shuffle: as in `ConcatPlan`; without it rows come in the order of their first document.
        passes: see the head of this file.
    """

    def __init__(
        self,
        items: Items,
        capacity: int,
        seed: int,
        shuffle: bool = True,
        sizes: np.ndarray | None = None,
        passes: int | None = None,
    ) -> None:
        self.items, self.seed, self.shuffle, self.passes = items, seed, shuffle, passes
        self.sizes = items.counts if sizes is None else sizes
        groups = pack_sizes(np.bincount(self.sizes, minlength=capacity + 1), capacity)
        self.slots, self.row_starts = place_items(groups, self.sizes)
        self.rows = len(self.row_starts) - 1
        self.stats = items.stats | {
            "rows": self.rows,
            "pairs": int(items.counts.sum()),
            "padding": self.rows * capacity - int(self.sizes.sum()),
        }
        self.epoch = functools.lru_cache(maxsize=2)(self.compute_epoch)

    def compute_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(item in each slot, packed row of each row number)."""
        if self.shuffle:
            items = permutation(len(self.sizes), self.seed, pass_of(epoch, self.passes), DOCUMENTS)
            rows = permutation(self.rows, self.seed, epoch, ROWS)
            by_size = items[np.argsort(self.sizes[items], kind="stable")]
            return by_size[self.slots], rows
        placed = np.argsort(self.sizes, kind="stable")[self.slots]
        first = np.minimum.reduceat(self.items.documents[placed], self.row_starts[:-1])
        return placed, np.argsort(first, kind="stable")

    def segments(self, epoch: int, row: int) -> list[Segment]:
        """The pieces of a row."""
        placed, rows = self.epoch(epoch)
        packed = int(rows[row])
        numbers = placed[self.row_starts[packed] : self.row_starts[packed + 1]]
        items = self.items
        return [Segment(int(items.documents[i]), int(items.starts[i]), int(items.counts[i])) for i in numbers]
