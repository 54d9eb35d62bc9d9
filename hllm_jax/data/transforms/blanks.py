"""Autoregressive blank infilling: GLM's pretraining (Du et al. 2022, sections 2.1 and 2.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.items import Room
from hllm_jax.data.tokenization import Tokenization
from hllm_jax.data.transforms.piece import Batch, blank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.order import Draws
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.transforms.piece import Piece

BLANKS = 14  # purpose of draws
LONGEST = 39  # tokens of a span: beyond it, Poisson(3) has no chance worth a thought


@dataclasses.dataclass(frozen=True)
class BlankIds:
    """Special tokens.

    Attributes:
        pad: fills rows.
        begin: first token of a text; None for none.
        mask, sentence_mask, document_mask: stand for a span, a sentence, and the rest of a document.
        start, end: [START] and [END] of a filled span.
    """

    pad: int
    begin: int | None
    mask: int
    sentence_mask: int
    document_mask: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class BlankShares:
    """How much is blanked, and how.

    Attributes:
        share: of a text's tokens that is blanked, at least.
        mean_span: λ of the Poisson distribution of span lengths (its zero left out).
        sentence: share of the texts that lose whole sentences instead.
        document: share of the texts that lose their end, from half to all of their length.
    """

    share: float = 0.15
    mean_span: float = 3.0
    sentence: float = 0.0
    document: float = 0.0

    def wanted(self, tokens: np.ndarray) -> np.ndarray:
        """int64: tokens that are to be blanked of texts of so many."""
        return np.maximum(np.rint(np.asarray(tokens) * self.share).astype(np.int64), 1)

    def most_spans(self, tokens: np.ndarray) -> np.ndarray:
        """int64: most spans in texts of so many tokens, for which a row has room: half as many as blanked
        tokens. Where a draw wants more (one in 200 for 100 tokens, none for 500), the last span is longer."""
        return (self.wanted(tokens) + 1) // 2


def poisson_lengths(count: int, mean: float, draws: Draws) -> np.ndarray:
    """int64 [count]: Poisson(mean) given that it is not 0, at most `LONGEST`."""
    chances = np.array([math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(1, 40)])
    return 1 + np.searchsorted(np.cumsum(chances / chances.sum())[:-1], draws.uniform(count), "right")


def draw_spans(tokens: int, shares: BlankShares, draws: Draws) -> np.ndarray:
    """int64 [spans, 2], ascending (start, stop) of the blanks of a text of so many tokens.

    Lengths are drawn until the share is reached; then the spans are placed so that a token at least stays
    between two of them, every placement equally likely. A token at least always stays.
    """
    wanted, most = int(shares.wanted(np.array(tokens))), int(shares.most_spans(np.array(tokens)))
    lengths = poisson_lengths(most, shares.mean_span, draws)
    count = min(int(np.searchsorted(np.cumsum(lengths), wanted, "left")) + 1, most)
    lengths = lengths[:count]
    before = int(lengths[:-1].sum())
    last = max(int(lengths[-1]), wanted - before)
    lengths[-1] = min(last, tokens - before - max(count - 1, 1))
    kept = tokens - int(lengths.sum())
    gaps = np.sort(draws.permutation(kept + 1)[:count])
    starts = gaps + np.cumsum(lengths) - lengths
    return np.stack([starts, starts + lengths], axis=1)


def draw_sentences(edges: np.ndarray, tokens: int, shares: BlankShares, draws: Draws) -> np.ndarray:
    """The same, of whole sentences in random order until the share is reached; one at least stays.

    Args:
        edges: int64 [sentences + 1], where sentences begin, and `tokens`.
        tokens: of the text.
        shares: how much.
        draws: random numbers.
    """
    sizes = np.diff(edges)
    order = draws.permutation(len(sizes))[: len(sizes) - 1]
    wanted, most = int(shares.wanted(np.array(tokens))), int(shares.most_spans(np.array(tokens)))
    count = min(int(np.searchsorted(np.cumsum(sizes[order]), wanted, "left")) + 1, most, len(order))
    chosen = np.sort(order[:count])
    return np.stack([edges[chosen], edges[chosen + 1]], axis=1)


def fill_in(
    tokens: np.ndarray, spans: np.ndarray, order: np.ndarray, mask_id: int, ids: BlankIds
) -> dict[str, np.ndarray]:
    """Part A, the text with a mask for every span, and part B, the spans in the given order, each as
    `[START] span` to be continued by `span [END]` (figure 2).

    Positions are two numbers: the place in part A (for part B that of the span's mask), and the place in the
    span, from 1; 0 in part A.

    Returns:
        `tokens, targets, weights, prefix` [n + 2 · spans] and `positions` [n + 2 · spans, 2], n counting
        `ids.begin` where there is one. `prefix` is 1 and `weights` 0 on part A.
    """
    pieces: list[np.ndarray] = [] if ids.begin is None else [np.array([ids.begin])]
    places: list[int] = []
    length, last = len(pieces), 0
    for start, stop in spans.tolist():
        pieces += [tokens[last:start], np.array([mask_id])]
        length += start - last + 1
        places.append(length - 1)
        last = stop
    pieces.append(tokens[last:])
    first = np.concatenate(pieces)
    inputs, targets = [first], [np.full(len(first), ids.pad)]
    positions = [np.stack([np.arange(len(first)), np.zeros(len(first), np.int64)], axis=1)]
    for number in order.tolist():
        start, stop = spans[number].tolist()
        inputs.append(np.concatenate([[ids.start], tokens[start:stop]]))
        targets.append(np.concatenate([tokens[start:stop], [ids.end]]))
        offsets = np.arange(1, stop - start + 2)
        positions.append(np.stack([np.full(len(offsets), places[number]), offsets], axis=1))
    joined = np.concatenate(inputs)
    prefix = np.arange(len(joined)) < len(first)
    return {
        "tokens": joined.astype(np.int32),
        "targets": np.concatenate(targets).astype(np.int32),
        "weights": (~prefix).astype(np.float32),
        "prefix": prefix.astype(np.int32),
        "positions": np.concatenate(positions).astype(np.int32),
    }


class BlankRows:
    """Rows of blank infilling (`PrefixBatch`). Every piece of a document is a segment.

    Args:
        length: L.
        ids: special tokens.
        shares: how much is blanked.
        pairs: positions are [B, L, 2] as in `fill_in`; else [B, L], places in the segment.
    """

    overlap = 0
    passes: int | None = None

    def __init__(self, length: int, ids: BlankIds, shares: BlankShares, pairs: bool = True) -> None:
        self.length, self.ids, self.shares, self.pairs = length, ids, shares, pairs
        self.form = Tokenization(special=False, sentences=shares.sentence > 0)
        counts = np.arange(1, length + 1)
        fitting = counts[self.size(counts) <= length]
        self.room = Room(length, int(fitting.max()) if len(fitting) else 0, 0, self.size)

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Pieces cut by length, packed; a single token teaches nothing."""
        items = arrangement.pieces(documents, self.room, self.targets(documents.lengths))
        return arrangement.pack(
            items, self.size(items.counts), self.room.capacity, int(self.targets(items.counts).sum())
        )

    def size(self, counts: np.ndarray) -> np.ndarray:
        """int64: room that pieces of so many tokens take at most."""
        return counts + (self.ids.begin is not None) + 2 * self.shares.most_spans(counts)

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        names = ("tokens", "targets", "weights", "segment_ids", "prefix")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (self.length,))
        places = (self.length, 2) if self.pairs else (self.length,)
        return blank(rows, shapes | {"positions": places}, self.ids.pad)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        at = 0
        for number, piece in enumerate(pieces, start=1):
            filled = self.fill(piece)
            end = at + len(filled["tokens"])
            if not self.pairs:
                filled["positions"] = np.arange(end - at)
            for name, values in filled.items():
                batch[name][line, at:end] = values
            batch["segment_ids"][line, at:end] = number
            at = end

    def fill(self, piece: Piece) -> dict[str, np.ndarray]:
        """One segment: a token alone has no blank."""
        draws, count = piece.draws(BLANKS), len(piece.tokens)
        mask_id, spans = self.ids.mask, np.zeros((0, 2), np.int64)
        kind = float(draws.uniform(1)[0])
        if count > 1 and kind < self.shares.document:
            blanked = min(math.ceil((0.5 + 0.5 * float(draws.uniform(1)[0])) * count), count)
            mask_id, spans = self.ids.document_mask, np.array([[count - blanked, count]])
        elif kind < self.shares.document + self.shares.sentence and len(piece.sentence_ends):
            edges = np.concatenate([[0], piece.sentence_ends, [count]])
            mask_id, spans = self.ids.sentence_mask, draw_sentences(edges, count, self.shares, draws)
        elif count > 1:
            spans = draw_spans(count, self.shares, draws)
        return fill_in(piece.tokens, spans, draws.permutation(len(spans)), mask_id, self.ids)

    def targets(self, counts: np.ndarray) -> np.ndarray:
        """int64: about the targets of pieces of so many tokens, the end of each span included."""
        shares = self.shares
        spans = np.maximum(np.rint(shares.wanted(counts) / shares.mean_span).astype(np.int64), 1)
        ends = (1 - shares.document) * (shares.wanted(counts) + spans) + shares.document * 0.75 * counts
        return np.where(counts > 1, np.maximum(np.rint(ends).astype(np.int64), 1), 0)
