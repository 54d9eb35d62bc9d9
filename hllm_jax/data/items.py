"""What a plan packs into rows: pieces of documents, cut by length or after whole sentences."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hllm_jax.data.transforms.seq2seq import Seq2SeqLayout


def same(count: np.ndarray) -> np.ndarray:
    """A piece takes as much room as it has units."""
    return count


@dataclasses.dataclass(frozen=True)
class Room:
    """How much of a row a piece of a document takes.

    A document of n tokens has n - `overlap` units: tokens, or (`overlap` 1) pairs of a token and the next.

    Attributes:
        capacity: of a row.
        longest: most units of a piece.
        overlap: tokens that a piece reads beyond its units.
        size: int [N] units of pieces -> int [N] room they take; `longest` units take at most `capacity`.
    """

    capacity: int
    longest: int
    overlap: int = 0
    size: Callable[[np.ndarray], np.ndarray] = same


def pairs_room(length: int) -> Room:
    """Of rows of so many (input, target) pairs."""
    return Room(capacity=length, longest=length, overlap=1)


@dataclasses.dataclass(frozen=True)
class Items:
    """Pieces of documents: units `starts` to `starts + counts` of `documents`; int64 [items] each.

    Attributes:
        stats: what became of the documents; see `whole_documents`.
    """

    documents: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    stats: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Units `start` to `start + count` of a document."""

    document: int
    start: int
    count: int


COUNTED = (
    "truncated",
    "split",
    "dropped_overlong",
    "dropped_untrained",
    "lost_tokens",
    "lost_trained_tokens",
)


def whole_documents(
    lengths: np.ndarray,
    room: Room,
    overlong: str = "truncate",
    trained: np.ndarray | None = None,
    weights_of: Callable[[int], np.ndarray] | None = None,
) -> Items:
    """Every document as one piece, those with more than `room.longest` units as the policy says.

    Args:
        lengths: int [N], tokens of each document.
        room: of the rows.
        overlong: what becomes of a document that is too long: "error", "truncate" (its first part), "drop",
            or "split" (consecutive pieces). Pieces without a trained target are dropped.
        trained: int [N], trained targets of each document; None: all of them.
        weights_of: weights (uint8 [lengths[i]]) of document i, asked for overlong ones only; None: all 1.

    Returns:
        The pieces, with the counts `documents`; `overlong` documents, of these `truncated`, `split` and
        `dropped_overlong`; `dropped_untrained` pieces; `lost_tokens` (units that no piece has) and
        `lost_trained_tokens` (those of them that would have been trained); `trained_tokens` of the pieces.

    Raises:
        DataError: a document is too long and `overlong` is "error", or nothing is left.
    """
    units = np.asarray(lengths, np.int64) - room.overlap
    learned = units if trained is None else np.asarray(trained, np.int64)
    whole = np.flatnonzero((units <= room.longest) & (learned > 0))
    pieces, stats = cut_overlong(units, room, overlong, weights_of)
    stats["dropped_untrained"] += int(((units <= room.longest) & (learned <= 0)).sum())
    stats["trained_tokens"] += int(learned[whole].sum())
    items = Items(
        np.concatenate([whole, np.array([piece.document for piece in pieces], np.int64)]),
        np.concatenate([np.zeros(len(whole), np.int64), np.array([p.start for p in pieces], np.int64)]),
        np.concatenate([units[whole], np.array([piece.count for piece in pieces], np.int64)]),
        {"documents": len(units), **stats},
    )
    if not len(items.counts):
        raise DataError(f"no document is left to pack into rows of {room.capacity}: {stats}")
    return items


def cut_overlong(
    units: np.ndarray, room: Room, policy: str, weights_of: Callable[[int], np.ndarray] | None
) -> tuple[list[Segment], dict[str, int]]:
    """The pieces that remain of documents of more than `room.longest` units, and counts."""
    length = room.longest
    overlong = np.flatnonzero(units > length)
    stats = {"overlong": len(overlong), "trained_tokens": 0, **dict.fromkeys(COUNTED, 0)}
    if len(overlong) and policy == "error":
        longest = int(units.max()) + room.overlap
        raise DataError(
            f"{len(overlong)} of {len(units)} records are longer than a row "
            f"(the longest has {longest} tokens, a row holds {length + room.overlap}); "
            "raise train.sequence_length, or set data.overlong to truncate, drop or split"
        )
    pieces: list[Segment] = []
    for document in overlong.tolist():
        count = int(units[document])
        marks = (
            np.ones(count, bool)
            if weights_of is None
            else np.asarray(weights_of(document))[room.overlap :] > 0
        )
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


def whole_pairs(
    sources: np.ndarray, targets: np.ndarray, layout: Seq2SeqLayout, overlong: str
) -> tuple[Items, np.ndarray]:
    """Pairs of texts, and the room that each takes; those that are too long as the policy says.

    Args:
        sources, targets: int [N], tokens of the two texts of each pair.
        layout: of the rows; each text needs a position more than it has tokens.
        overlong: "error", "truncate" (the ends of both texts are cut off) or "drop".

    Raises:
        DataError: a pair is too long and `overlong` is "error", or nothing is left.
    """
    most, most_out = layout.length - 1, layout.target_length - 1
    sources, targets = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
    fits = (sources <= most) & (targets <= most_out)
    if overlong == "error" and not fits.all():
        raise DataError(
            f"{int((~fits).sum())} of {len(fits)} pairs are too long: the longest source has "
            f"{int(sources.max())} tokens (rows take {most}), the longest target {int(targets.max())} "
            f"(rows take {most_out}); raise train.sequence_length and objective.seq2seq.target_length, or "
            "set data.overlong to truncate or drop"
        )
    kept = np.flatnonzero(fits) if overlong == "drop" else np.arange(len(fits))
    if not len(kept):
        raise DataError(f"no pair of {len(fits)} fits into a row of {most} and {most_out} tokens")
    cut = np.minimum(sources, most), np.minimum(targets, most_out)
    lost = int((sources + targets).sum()) - int((cut[0] + cut[1])[kept].sum())
    stats = {"documents": len(fits), "overlong": int((~fits).sum()), **dict.fromkeys(COUNTED, 0)}
    stats["truncated" if overlong == "truncate" else "dropped_overlong"] = stats["overlong"]
    stats |= {"lost_tokens": lost, "trained_tokens": int(cut[1][kept].sum()) + len(kept)}
    items = Items(kept, np.zeros(len(kept), np.int64), (sources + targets)[kept], stats)
    return items, layout.sizes(cut[0][kept] + 1, cut[1][kept] + 1)


def whole_sentences(
    lengths: np.ndarray,
    sentence_ends: np.ndarray,
    longest: int,
    shortest: int = 1,
    limits: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> Items:
    """Consecutive pieces of every document, each of as many whole sentences as fit.

    A sentence that is longer than a piece is cut. All documents advance together, a piece at a time, so that
    the cost is that of a few array operations for each piece of the longest document.

    Args:
        lengths: int [N], tokens of each document.
        sentence_ends: int [S], ascending: where each sentence ends in the tokens of all documents joined.
        longest: most tokens of a piece.
        shortest: pieces of fewer tokens are dropped, and counted as `lost_tokens`.
        limits: (int [M] documents, number of the piece in them) -> int [M], most tokens of these pieces, each
            from `shortest` to `longest`.

    Raises:
        DataError: nothing is left.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    at = ends - np.asarray(lengths, np.int64)
    open_documents = np.flatnonzero(at < ends)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    number = 0
    while len(open_documents):
        here = at[open_documents]
        most = np.full(len(here), longest, np.int64) if limits is None else limits(open_documents, number)
        room = np.minimum(here + most, ends[open_documents])
        last = np.searchsorted(sentence_ends, room, "right") - 1
        fits = np.where(last >= 0, sentence_ends[np.maximum(last, 0)], 0)
        stop = np.where(fits > here, fits, room)
        begin = (ends - lengths)[open_documents]
        found.append((open_documents, here - begin, stop - here))
        at[open_documents] = stop
        open_documents = open_documents[stop < ends[open_documents]]
        number += 1
    documents, starts, counts = (np.concatenate(column) for column in zip(*found, strict=True))
    kept = counts >= shortest
    stats = {
        "documents": len(lengths),
        "trained_tokens": int(counts[kept].sum()),
        **dict.fromkeys(COUNTED, 0),
        "lost_tokens": int(counts[~kept].sum()),
    }
    if not kept.any():
        raise DataError(f"no piece of at least {shortest} tokens is left of {len(lengths)} documents")
    return Items(documents[kept], starts[kept], counts[kept], stats)
