"""Span corruption: T5's pretraining (Raffel et al. 2020, section 3.1.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.items import Room
from hllm_jax.data.tokenization import Tokenization
from hllm_jax.data.transforms.piece import Batch
from hllm_jax.data.transforms.seq2seq import Seq2SeqLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.order import Draws
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.transforms.piece import Piece

NOISE = 13  # purpose of draws


def noise_counts(tokens: np.ndarray, density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """(noise tokens, noise spans) of texts of so many tokens, int64 each.

        noise = round(tokens · density), at least 1 and at most tokens - 1
        spans = round(noise / mean_span), at least 1 and at most tokens - noise

    Both are 0 for a text of one token. Halves are rounded to even.
    """
    tokens = np.asarray(tokens, np.int64)
    noise = np.minimum(np.maximum(np.rint(tokens * density).astype(np.int64), 1), tokens - 1)
    spans = np.maximum(np.rint(noise / mean_span).astype(np.int64), 1)
    return noise, np.minimum(np.minimum(spans, noise), tokens - noise)


def row_lengths(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """(tokens of text, target positions) of which span corruption makes an input of exactly `length`, or of
    as many positions below as possible.

    Input: the text without noise, a sentinel for each span, an end token. Target: the noise, a sentinel for
    each span, an end token. For 512, 0.15 and 3 that is 568 and 114, as in T5's own code.
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = (int(n) for n in noise_counts(np.array(tokens), density, mean_span))
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = 1
    while lengths(tokens + 1)[0] <= length:
        tokens += 1
    # A longer text may need a shorter target (rounding), so the longest target of any piece counts.
    return tokens, max(lengths(n)[1] for n in range(1, tokens + 1))


def noise_mask(tokens: int, density: float, mean_span: float, draws: Draws) -> np.ndarray:
    """bool [tokens]: which of them are noise.

    Kept and noise spans alternate, beginning with a kept one; their numbers and total lengths are those of
    `noise_counts`, and every such division is equally likely.
    """
    noise, spans = (int(n) for n in noise_counts(np.array(tokens), density, mean_span))
    mask = np.zeros(tokens, bool)
    if spans == 0:
        return mask
    kept = random_parts(tokens - noise, spans, draws)
    hidden = random_parts(noise, spans, draws)
    edges = np.cumsum(np.stack([kept, hidden], axis=1).reshape(-1))
    for start, stop in edges.reshape(-1, 2).tolist():
        mask[start:stop] = True
    return mask


def random_parts(total: int, parts: int, draws: Draws) -> np.ndarray:
    """int64 [parts], each at least 1, their sum is `total`; every such composition is equally likely."""
    cuts = np.sort(draws.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.r_[0, cuts, total])


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(input, target) without end tokens, int32 each.

    Each noise span is replaced by the next sentinel; the target is each sentinel with the span that it stands
    for. If the text goes on after the last span, one more sentinel ends the target:
    "Thank you ⟨X⟩ me to your party ⟨Y⟩ week" and "⟨X⟩ for inviting ⟨Y⟩ last ⟨Z⟩" (figure 2).
    """
    begins = mask.copy()
    begins[1:] &= ~mask[:-1]
    ids = np.asarray(sentinels, np.int32)
    spans = int(begins.sum())
    seen = np.array(tokens, np.int32)
    seen[begins] = ids[:spans]
    target = np.insert(np.asarray(tokens, np.int32)[mask], np.flatnonzero(begins[mask]), ids[:spans])
    if spans and not mask[-1]:
        target = np.append(target, ids[spans])
    return seen[~mask | begins], target


class SpanRows:
    """Rows of span corruption (`Seq2SeqBatch`). Every piece of a document is corrupted on its own; the
    longest ones fill a row exactly.

    Args:
        layout: of the rows; its target length is at least `row_lengths(...)[1]`.
        sentinels: ids of the sentinels in their order.
        density: share of the tokens that are noise.
        mean_span: mean length of a noise span.
    """

    form = Tokenization(special=False)
    overlap = 0
    passes: int | None = None

    def __init__(
        self, layout: Seq2SeqLayout, sentinels: Sequence[int], density: float = 0.15, mean_span: float = 3.0
    ) -> None:
        self.layout, self.sentinels = layout, tuple(sentinels)
        self.density, self.mean_span = density, mean_span
        longest, _ = row_lengths(layout.length, density, mean_span)
        self.room = Room(layout.length, longest, 0, self.size)

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Pieces cut by length, packed; a single token teaches nothing."""
        items = arrangement.pieces(documents, self.room, self.targets(documents.lengths))
        return arrangement.pack(
            items, self.size(items.counts), self.room.capacity, int(self.targets(items.counts).sum())
        )

    def size(self, counts: np.ndarray) -> np.ndarray:
        """int64: room that pieces of so many tokens take."""
        noise, spans = noise_counts(counts, self.density, self.mean_span)
        return self.layout.sizes(counts - noise + spans + 1, noise + spans + 1)

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        return self.layout.empty(rows)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        segments = []
        for piece in pieces:
            mask = noise_mask(len(piece.tokens), self.density, self.mean_span, piece.draws(NOISE))
            segments.append((*corrupt(piece.tokens, mask, self.sentinels), bool(mask.any())))
        self.layout.write(batch, line, segments)

    def targets(self, counts: np.ndarray) -> np.ndarray:
        """int64: the targets of pieces of so many tokens; none of a single token."""
        noise, spans = noise_counts(counts, self.density, self.mean_span)
        return np.where(spans > 0, noise + spans + 1, 0)
