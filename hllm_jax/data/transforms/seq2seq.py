"""Sequence to sequence: one text in, another out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.items import whole_pairs
from hllm_jax.data.tokenization import Tokenization
from hllm_jax.data.transforms.piece import Batch, blank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.transforms.piece import Piece


class Seq2SeqLayout:
    """Rows of L positions for the encoder and T for the decoder (`Seq2SeqBatch`).

    Args:
        length: L.
        target_length: T.
        pad_id: of the tokenizer.
        eos_id: closes every source and every target.
        start_id: what the decoder reads first.
    """

    def __init__(self, length: int, target_length: int, pad_id: int, eos_id: int, start_id: int) -> None:
        self.length, self.target_length = length, target_length
        self.pad_id, self.eos_id, self.start_id = pad_id, eos_id, start_id

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        encoder = dict.fromkeys(("tokens", "segment_ids", "positions"), (self.length,))
        names = ("decoder_tokens", "targets", "weights", "decoder_segment_ids", "decoder_positions")
        return blank(rows, encoder | dict.fromkeys(names, (self.target_length,)), self.pad_id)

    def sizes(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """int64: room that segments take in a row whose capacity is L, where encoder and decoder take so many
        positions: a decoder's position weighs L/T, so what fits by this sum fits on both sides."""
        return np.maximum(source, -(-target * self.length // self.target_length))

    def write(self, batch: Batch, line: int, segments: Sequence[tuple[np.ndarray, np.ndarray, bool]]) -> None:
        """Fill a row with (source, target, trained) segments, without their end tokens."""
        at = out = 0
        for number, (source, target, trained) in enumerate(segments, start=1):
            end = at + len(source) + 1
            batch["tokens"][line, at : end - 1] = source
            batch["tokens"][line, end - 1] = self.eos_id
            batch["segment_ids"][line, at:end] = number
            batch["positions"][line, at:end] = np.arange(end - at)
            at, stop = end, out + len(target) + 1
            batch["decoder_tokens"][line, out] = self.start_id
            batch["decoder_tokens"][line, out + 1 : stop] = target
            batch["targets"][line, out : stop - 1] = target
            batch["targets"][line, stop - 1] = self.eos_id
            batch["weights"][line, out:stop] = float(trained)
            batch["decoder_segment_ids"][line, out:stop] = number
            batch["decoder_positions"][line, out:stop] = np.arange(stop - out)
            out = stop


class Seq2SeqRows:
    """Records `{"source", "target"}`, packed or one a row; texts that are too long lose their ends.

    The store has both texts joined, with weight 1 on the second. How much room a pair takes depends on both
    (`items.whole_pairs`).

    Args:
        layout: of the rows.
    """

    form = Tokenization(pairs=True)
    overlap = 0
    passes: int | None = None

    def __init__(self, layout: Seq2SeqLayout) -> None:
        self.layout = layout

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Whole pairs, packed."""
        sources = documents.first_trained
        targets = documents.lengths - sources
        items, sizes = whole_pairs(sources, targets, self.layout, arrangement.overlong)
        return arrangement.pack(items, sizes, self.layout.length)

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        return self.layout.empty(rows)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        segments = []
        for piece in pieces:
            assert piece.marks is not None, "pairs are weighted"
            target = piece.marks > 0
            source, answer = piece.tokens[~target], piece.tokens[target]
            most, most_out = self.layout.length - 1, self.layout.target_length - 1
            segments.append((source[:most], answer[:most_out], True))
        self.layout.write(batch, line, segments)
