"""Plans of an epoch, pure functions of (lengths, seed, epoch): which part of which document is in which row.

A document of n tokens is a stream of n-1 (input, target) pairs. A row has room for L pairs.

- `ConcatPlan` joins the pair streams of all documents in a random order and cuts windows of L pairs: every
  pair stands in exactly one row, and only the last row of an epoch has padding.
- `FirstFitPlan` packs whole documents into rows and says what it did with those that are longer than a row.

Both shuffle the rows too, so that a batch is not a run of windows of one book.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.order import permutation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DOCUMENTS, ROWS = 0, 1  # which of an epoch's two orders


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Pairs `start` to `start + count` of a document: its tokens `start` to `start + count + 1`."""

    document: int
    start: int
    count: int


class Plan(Protocol):
    """What a row is made of."""

    rows: int
    """Rows in one epoch; the same in every epoch."""
    stats: dict[str, int]

    def segments(self, epoch: int, row: int) -> list[Segment]:
        """The segments of a row in order; together at most L pairs."""
        ...


class ConcatPlan:
    """Concatenate, then split.

    Args:
        lengths: int [N], tokens of each document, all at least 2.
        sequence_length: L, pairs in a row.
        seed: of the order.
        shuffle: a random order of documents and rows in every epoch; else as they come.
        trained: trained targets in all documents together (only reported).
    """

    def __init__(
        self,
        lengths: np.ndarray,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
        trained: int | None = None,
    ) -> None:
        self.pairs = np.asarray(lengths, np.int64) - 1
        self.length, self.seed, self.shuffle = sequence_length, seed, shuffle
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
            documents = permutation(len(self.pairs), self.seed, epoch, DOCUMENTS)
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
    """Whole documents packed into rows, longest first, each into the fullest row that still has room.

    All documents of one size are alike to the packing, so it runs on the histogram of sizes (Krell et al.
    2021, "Efficient Sequence Packing without Cross-contamination", section 3), whose cost does not grow with
    the number of documents. Which document of a size goes where is drawn anew in every epoch; how many rows
    there are is not.

    Args:
        lengths: int [N], tokens of each document.
        sequence_length: L, pairs in a row.
        seed: of the order.
        overlong: what becomes of a document with more than L pairs: "error", "truncate" (its first L pairs),
            "drop", or "split" (consecutive pieces). Pieces without a trained target are dropped.
        shuffle: as in `ConcatPlan`; without it rows come in the order of their first document.
        trained: int [N], trained targets of each document; None: all of them.
        weights_of: weights (uint8 [lengths[i]]) of document i, asked for overlong ones only; None: all 1.

    Raises:
        DataError: a document is too long and `overlong` is "error", or nothing is left.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        sequence_length: int,
        seed: int,
        overlong: str = "truncate",
        shuffle: bool = True,
        trained: np.ndarray | None = None,
        weights_of: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        pairs = np.asarray(lengths, np.int64) - 1
        learned = pairs if trained is None else np.asarray(trained, np.int64)
        self.length, self.seed, self.shuffle = sequence_length, seed, shuffle
        whole = np.flatnonzero((pairs <= sequence_length) & (learned > 0))
        pieces, self.stats = cut_overlong(pairs, sequence_length, overlong, weights_of)
        self.stats["dropped_untrained"] += int(((pairs <= sequence_length) & (learned <= 0)).sum())
        self.stats["trained_tokens"] += int(learned[whole].sum())
        self.documents = np.concatenate([whole, np.array([p.document for p in pieces], np.int64)])
        self.starts = np.concatenate(
            [np.zeros(len(whole), np.int64), np.array([p.start for p in pieces], np.int64)]
        )
        self.sizes = np.concatenate([pairs[whole], np.array([p.count for p in pieces], np.int64)])
        if not len(self.sizes):
            raise DataError(f"no document is left to pack into rows of {sequence_length}: {self.stats}")
        groups = pack_sizes(np.bincount(self.sizes, minlength=sequence_length + 1), sequence_length)
        self.slots, self.row_starts = place_items(groups, self.sizes)
        self.rows = len(self.row_starts) - 1
        total = int(self.sizes.sum())
        self.stats |= {
            "documents": len(pairs),
            "rows": self.rows,
            "pairs": total,
            "padding": self.rows * sequence_length - total,
        }
        self.epoch = functools.lru_cache(maxsize=2)(self.compute_epoch)

    def compute_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(item in each slot, packed row of each row number)."""
        if self.shuffle:
            items = permutation(len(self.sizes), self.seed, epoch, DOCUMENTS)
            rows = permutation(self.rows, self.seed, epoch, ROWS)
            by_size = items[np.argsort(self.sizes[items], kind="stable")]
            return by_size[self.slots], rows
        placed = np.argsort(self.sizes, kind="stable")[self.slots]
        first = np.minimum.reduceat(self.documents[placed], self.row_starts[:-1])
        return placed, np.argsort(first, kind="stable")

    def segments(self, epoch: int, row: int) -> list[Segment]:
        """The documents, or pieces of documents, of a row."""
        placed, rows = self.epoch(epoch)
        packed = int(rows[row])
        items = placed[self.row_starts[packed] : self.row_starts[packed + 1]]
        return [Segment(int(self.documents[i]), int(self.starts[i]), int(self.sizes[i])) for i in items]


def cut_overlong(
    pairs: np.ndarray, length: int, policy: str, weights_of: Callable[[int], np.ndarray] | None
) -> tuple[list[Segment], dict[str, int]]:
    """Apply the policy to documents of more than `length` pairs.

    Returns:
        The pieces that remain of them, and counts: `overlong` documents, of these `truncated`, `split` and
        `dropped_overlong`; `dropped_untrained` pieces; `lost_tokens` (pairs that no row has) and
        `lost_trained_tokens` (those of them that would have been trained); `trained_tokens` of the pieces.
    """
    overlong = np.flatnonzero(pairs > length)
    names = (
        "truncated",
        "split",
        "dropped_overlong",
        "dropped_untrained",
        "lost_tokens",
        "lost_trained_tokens",
    )
    stats = {"overlong": len(overlong), "trained_tokens": 0, **dict.fromkeys(names, 0)}
    if len(overlong) and policy == "error":
        longest = int(pairs.max()) + 1
        raise DataError(
            f"{len(overlong)} of {len(pairs)} records are longer than a row "
            f"(the longest has {longest} tokens, a row holds {length + 1}); raise train.sequence_length, "
            "or set data.overlong to truncate, drop or split"
        )
    pieces: list[Segment] = []
    for document in overlong.tolist():
        count = int(pairs[document])
        marks = np.ones(count, bool) if weights_of is None else np.asarray(weights_of(document))[1:] > 0
        stops = {"drop": 0, "truncate": length, "split": count}[policy]
        kept = 0
        for start in range(0, stops, length):
            stop = min(start + length, stops)
            learned = int(marks[start:stop].sum())
            if learned:
                pieces.append(Segment(document, start, stop - start))
                kept += stop - start
                stats["trained_tokens"] += learned
                stats["lost_trained_tokens"] -= learned
            else:
                stats["dropped_untrained"] += 1
        stats["lost_trained_tokens"] += int(marks.sum())
        stats["lost_tokens"] += count - kept
        stats[{"drop": "dropped_overlong", "truncate": "truncated", "split": "split"}[policy]] += 1
    return pieces, stats


def pack_sizes(histogram: np.ndarray, length: int) -> list[tuple[tuple[int, ...], int]]:
    """Pack items of sizes 1..length, given how many there are of each, into rows of `length`.

    Longest first; each into the row with the least room that still fits it.

    Returns:
        `(sizes in the row, number of such rows)` pairs.
    """
    room: dict[int, list[tuple[tuple[int, ...], int]]] = {}

    def put(sizes: tuple[int, ...], left: int, rows: int) -> None:
        if rows:
            room.setdefault(left, []).append((sizes, rows))

    for size in range(length, 0, -1):
        count = int(histogram[size])
        for left in range(size, length):
            if count == 0:
                break
            waiting = room.pop(left, [])
            while waiting and count:
                sizes, rows = waiting.pop()
                each = left // size  # copies that fit into one such row
                full = min(rows, count // each)
                put(sizes + (size,) * each, left - each * size, full)
                rows, count = rows - full, count - full * each
                if rows and count:  # fewer copies remain than fit into one row
                    put(sizes + (size,) * count, left - count * size, 1)
                    rows, count = rows - 1, 0
                put(sizes, left, rows)
            if waiting:
                room.setdefault(left, []).extend(waiting)
        each = length // size
        put((size,) * each, length - each * size, count // each)
        put((size,) * (count % each), length - (count % each) * size, int(count % each > 0))
    return [group for left in sorted(room) for group in room[left]]


def place_items(
    groups: Sequence[tuple[tuple[int, ...], int]], sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give every slot of every row an item, items numbered by size (stable).

    Returns:
        int64 [items], the item in each slot, row after row; int64 [rows + 1], the first slot of each row.
    """
    histogram = np.bincount(sizes)
    next_item = np.cumsum(histogram) - histogram
    widths = np.repeat([len(group) for group, _ in groups], [rows for _, rows in groups])
    row_starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    slots = np.empty(len(sizes), np.int64)
    row = 0
    for group, rows in groups:
        starts = row_starts[row : row + rows]
        for slot, size in enumerate(group):
            slots[starts + slot] = np.arange(next_item[size], next_item[size] + rows)
            next_item[size] += rows
        row += rows
    return slots, row_starts
