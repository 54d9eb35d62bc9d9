"""Causal language models: every token predicts the next one; and prefix language models on the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.items import pairs_room
from hllm_jax.data.plan import ConcatPlan
from hllm_jax.data.tokenization import Tokenization
from hllm_jax.data.transforms.piece import Batch, blank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.transforms.piece import Piece

SPLIT = 10  # purpose of draws


class CausalRows:
    """Rows of L pairs of a token and the next (`LMBatch`).

    Args:
        length: L.
        pad_id: of the tokenizer.
    """

    form = Tokenization()
    overlap = 1
    passes: int | None = None

    def __init__(self, length: int, pad_id: int) -> None:
        self.length, self.pad_id = length, pad_id

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Windows of all documents joined, or whole documents packed."""
        if arrangement.packing == "concat":
            total, how = int(documents.trained.sum(dtype=np.int64)), arrangement
            return ConcatPlan(documents.lengths, self.length, how.seed, how.shuffle, total, how.passes)
        items = arrangement.pieces(documents, pairs_room(self.length), documents.trained)
        return arrangement.pack(items, items.counts, self.length)

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        names = ("tokens", "targets", "weights", "segment_ids", "positions")
        return blank(rows, dict.fromkeys(names, (self.length,)), self.pad_id)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        at = 0
        for number, piece in enumerate(pieces, start=1):
            end = at + len(piece.tokens) - 1
            batch["tokens"][line, at:end] = piece.tokens[:-1]
            batch["targets"][line, at:end] = piece.tokens[1:]
            batch["weights"][line, at:end] = 1.0 if piece.marks is None else piece.marks[1:]
            batch["segment_ids"][line, at:end] = number
            batch["positions"][line, at:end] = np.arange(end - at)
            at = end


class PrefixRows(CausalRows):
    """The same rows, each segment split at random into a prefix, read in both directions, and a continuation
    (`PrefixBatch`; Raffel et al. 2020, section 3.2.3; Liu et al. 2018).

    Of a segment of n + 1 tokens, the prefix has the first k, k uniform from 1 to n, and the n + 1 - k others
    are the targets. The last token of the prefix predicts the first of them.
    """

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """As `CausalRows`; about half of the targets are trained."""
        plan = super().plan(documents, arrangement)
        plan.stats["trained_tokens"] = (plan.stats["trained_tokens"] + plan.rows) // 2
        return plan

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        return super().empty(rows) | blank(rows, {"prefix": (self.length,)}, self.pad_id)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        super().write(batch, line, pieces)
        at = 0
        for piece in pieces:
            count = len(piece.tokens) - 1
            prefix = 1 + piece.draws(SPLIT).integer(count)
            batch["prefix"][line, at : at + prefix] = 1
            batch["weights"][line, at : at + prefix - 1] = 0.0
            at += count
