"""A strong small baseline: a byte n-gram model with interpolated modified Kneser-Ney smoothing.

A language model that does not beat counting has learnt little, so this model reads the same training text
and predicts the same held-out text, byte for byte. It is not stored: counts of one order are made, used and
forgotten before the next order is made, so memory stays near 60 bytes per byte of training text.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

# No UTF-8 text contains this byte: it ends each document, as <|eos|> does for a language model.
SEPARATOR = b"\xff"
ALPHABET = 256


@dataclass(frozen=True, kw_only=True)
class NGramScore:
    """What the n-gram model reaches on held-out text.

    Attributes:
        bits_per_byte: bits spent on all bytes and document ends, over the bytes of the documents alone.
        order: length of the longest n-gram in bytes (its context is one shorter), chosen on training text.
        chosen_from: bits per byte on the slice of training text that chose the order, for orders 1, 2, ….
        train_bytes: bytes the counts come from.
        heldout_bytes: bytes of the scored documents.
        seconds: wall time, the choice of the order included.
    """

    bits_per_byte: float
    order: int
    chosen_from: tuple[float, ...]
    train_bytes: int
    heldout_bytes: int
    seconds: float


def ngram(
    train: Sequence[str], heldout: Sequence[str], max_order: int = 10, slice_fraction: float = 0.02
) -> NGramScore:
    """Score `heldout` with an n-gram model of `train` whose order is chosen inside `train`.

    Args:
        train: documents to count.
        heldout: documents to predict; they take no part in any choice.
        max_order: longest n-gram tried, in bytes (a common Chinese character is three).
        slice_fraction: share of the training documents, spread evenly, that chooses the order.

    Raises:
        ValueError: if either side has no bytes, or `max_order` is below 1.
    """
    start = time.perf_counter()
    if max_order < 1:
        raise ValueError(f"max_order is {max_order}; an n-gram has at least one byte")
    stride = max(2, round(1 / slice_fraction))
    chosen_from: tuple[float, ...] = ()
    order = max_order
    if len(train) >= 2:  # a single document cannot be split; it takes the longest order
        scores = bits_per_order(
            [text for n, text in enumerate(train) if n % stride], list(train[::stride]), max_order
        )
        chosen_from = tuple(float(score) for score in scores)
        order = int(np.argmin(scores)) + 1
    score = float(bits_per_order(train, heldout, order)[-1])
    return NGramScore(
        bits_per_byte=score,
        order=order,
        chosen_from=chosen_from,
        train_bytes=_size(train),
        heldout_bytes=_size(heldout),
        seconds=time.perf_counter() - start,
    )


def bits_per_order(train: Sequence[str], heldout: Sequence[str], max_order: int) -> Floats:
    """Bits per byte on `heldout` for n-gram models of order 1 … `max_order`, float64 [max_order].

    Chen and Goodman 1999, "An empirical study of smoothing techniques", section 3: interpolated modified
    Kneser-Ney. The highest order uses counts, every lower one the number of distinct bytes seen in front of
    the n-gram, and order 0 is uniform over the 256 byte values, so no text is impossible.
    """
    size = _size(heldout)
    if not size or not _size(train):
        raise ValueError("an n-gram score needs at least one byte of training text and one of held-out text")
    known, asked = _bytes(train), _bytes(heldout)
    bits = np.zeros(max_order)
    lower = np.full(len(asked), 1.0 / ALPHABET)  # probability of each held-out byte, one order below
    # The context of order 1 is empty: everyone shares context 0.
    known_contexts = np.zeros(len(known), np.int64)
    asked_contexts = np.zeros(len(asked), np.int64)
    table = _count(known_contexts, known)
    for order in range(1, max_order + 1):
        place = table.find(asked_contexts, asked)
        bits[order - 1] = -np.log2(table.probability(table.counts, asked_contexts, place, lower)).sum()
        if order == max_order:
            break
        # A gram of this order that ends at i - 1 is the context of order + 1 at i. Before `order` bytes have
        # been seen there is none: the first bytes wrap around to the end of the text, which costs nothing.
        known_contexts = np.roll(table.known, 1)
        longer = _count(known_contexts, known)
        fronts = np.bincount(table.known[longer.example], minlength=len(table.keys))
        lower = table.probability(fronts, asked_contexts, place, lower)
        asked_contexts = np.roll(place, 1)
        asked_contexts[:1] = -1
        table = longer
    return bits / size


@dataclass(frozen=True)
class _Table:
    """All n-grams of one order.

    Attributes:
        keys: context · 256 + last byte of each distinct n-gram, ascending, int64 [G].
        counts: occurrences, int64 [G].
        example: a text position where each ends, int64 [G].
        known: which n-gram ends at each position of the training text, int64 [N].
        contexts: one more than the largest context id.
    """

    keys: Ints
    counts: Ints
    example: Ints
    known: Ints
    contexts: int

    def find(self, contexts: Ints, last: Ints) -> Ints:
        """The id of each (context, byte), int64; -1 for an n-gram that was never seen."""
        wanted = contexts * ALPHABET + last
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((self.keys[place] == wanted) & (contexts >= 0), place, -1)

    def probability(self, counts: Ints, contexts: Ints, place: Ints, lower: Floats) -> Floats:
        """max(c - D(c), 0) / c(context) + γ(context) · lower; `lower` where the context is unknown."""
        owner = self.keys // ALPHABET
        take = _discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(owner, weights=counts, minlength=self.contexts)
        taken = np.bincount(owner, weights=take, minlength=self.contexts)
        kept = np.where(place >= 0, (counts - take)[place], 0.0)
        seen = (contexts >= 0) & (total[contexts] > 0)
        return np.where(seen, (kept + taken[contexts] * lower) / np.maximum(total[contexts], 1.0), lower)


def _count(contexts: Ints, last: Ints) -> _Table:
    """Sort the (context, byte) pairs of the training text and number the distinct ones."""
    # Pair and position share one integer, because sorting numbers is several times faster than sorting
    # positions by their numbers. Ids are below the length of the text, so 2^27 bytes fit in 62 bits.
    shift = max(1, (len(last) - 1).bit_length())
    packed = ((contexts * ALPHABET + last) << shift) | np.arange(len(last))
    packed.sort()
    ordered, order = packed >> shift, packed & ((1 << shift) - 1)
    first = np.empty(len(ordered), bool)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    known = np.empty(len(last), np.int64)
    known[order] = np.cumsum(first) - 1
    return _Table(
        keys=ordered[starts],
        counts=np.diff(starts, append=len(ordered)),
        example=order[starts],
        known=known,
        contexts=int(contexts.max()) + 1,
    )


def _discounts(counts: Ints) -> Floats:
    """D0 … D3+ of modified Kneser-Ney (Chen and Goodman 1999, equation 26), float64 [4].

    Where too few n-grams are that rare (order 1 of a long text) the formula has no value; half a count is
    then as good as any, because the counts it is taken from are large.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if n[1] == 0 or n[2] == 0 or n[3] == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n[1] / (n[1] + 2 * n[2])
    raw = np.array([0.0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]])
    return np.clip(raw, [0.0, 0.01, 0.01, 0.01], [0.0, 0.99, 1.99, 2.99])


def _bytes(texts: Iterable[str]) -> Ints:
    joined = b"".join(text.encode() + SEPARATOR for text in texts)
    return np.frombuffer(joined, np.uint8).astype(np.int64)


def _size(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)
