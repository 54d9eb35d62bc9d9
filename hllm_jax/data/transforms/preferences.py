"""Preferences: a chosen and a rejected answer to one prompt, side by side (`PairBatch`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.items import COUNTED, Items
from hllm_jax.data.plan import FirstFitPlan
from hllm_jax.data.tokenization import Tokenization
from hllm_jax.data.transforms.piece import Batch, blank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.transforms.piece import Piece

SIDES = ("chosen", "rejected")


class PairRows:
    """Rows of two texts of at most L tokens, prompt and answer.

    The store has the tokens of both joined, with weight 1 on the answers, and for each pair the numbers of
    `tokenization.tokenize_preference`.

    Args:
        length: L.
        pad_id: of the tokenizer.
        form, unpaired: see `PairDataConfig`.
    """

    overlap = 0
    passes: int | None = None

    def __init__(
        self, length: int, pad_id: int, form: Literal["chat", "text"] = "chat", unpaired: bool = False
    ) -> None:
        self.length, self.pad_id = length, pad_id
        task = "rated" if unpaired else "preference"
        self.form = Tokenization(task=task if form == "chat" else f"text_{task}")  # pyrefly: ignore

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Every pair in a row of its own; sides that are too long lose their ends, or as `overlong` says.

        A pair whose sides are the same up to the end of the row is dropped: nothing of it could be learned.

        Raises:
            DataError: a side is too long and `overlong` is "error", or no pair is left.
        """
        total = np.asarray(documents.lengths, np.int64)
        chosen = np.asarray(documents.labels[:, 0], np.int64)
        differ = np.asarray(documents.labels[:, 1], np.int64)
        longer = np.maximum(chosen, total - chosen)
        fits = longer <= self.length
        if arrangement.overlong in ("error", "split") and not fits.all():
            raise DataError(
                f"{int((~fits).sum())} of {len(fits)} pairs are longer than a row (the longest side has "
                f"{int(longer.max())} tokens, a row holds {self.length}); raise train.sequence_length, or "
                "set data.overlong to truncate or drop"
            )
        drops = arrangement.overlong == "drop"
        kept = np.flatnonzero(fits if drops else differ < self.length)
        if not len(kept):
            raise DataError(
                f"none of {len(fits)} pairs differ within {self.length} tokens: raise train.sequence_length"
            )
        held = np.minimum(chosen, self.length) + np.minimum(total - chosen, self.length)
        stats = {"documents": len(fits), "overlong": int((~fits).sum()), **dict.fromkeys(COUNTED, 0)}
        cut = kept[~fits[kept]]
        stats["truncated"] = len(cut)
        stats["dropped_overlong" if drops else "dropped_untrained"] = len(fits) - len(kept)
        stats["lost_tokens"] = int(total.sum() - held[kept].sum())
        lost = sum(self._lost(documents, int(number), int(chosen[number])) for number in cut)
        trained = np.asarray(documents.trained, np.int64)
        stats["lost_trained_tokens"] = lost + int(trained.sum() - trained[kept].sum())
        stats["trained_tokens"] = int(trained[kept].sum()) - lost
        items = Items(kept, np.zeros(len(kept), np.int64), total[kept], stats)
        how = arrangement
        plan = FirstFitPlan(items, 1, how.seed, how.shuffle, np.ones(len(kept), np.int64), how.passes)
        tokens = int(held[kept].sum())
        plan.stats |= {"pairs": tokens, "padding": 2 * self.length * plan.rows - tokens}
        return plan

    def _lost(self, documents: Documents, number: int, chosen: int) -> int:
        """Trained tokens of a pair that its row has no room for."""
        assert documents.weights_of is not None, "pairs are weighted"
        weights = documents.weights_of(number)
        return int((weights[self.length : chosen] > 0).sum() + (weights[chosen + self.length :] > 0).sum())

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        row = {f"{side}_{name}": (self.length,) for side in SIDES for name in FIELDS}
        return blank(rows, {**row, "margins": (), "pair_weights": ()}, self.pad_id)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        for piece in pieces:
            assert piece.marks is not None, "pairs are weighted"
            middle, _, margin, weight = piece.labels.tolist()
            for side, part in zip(SIDES, (slice(0, middle), slice(middle, None)), strict=True):
                tokens = piece.tokens[part][: self.length]
                end = len(tokens)
                batch[f"{side}_tokens"][line, :end] = tokens
                batch[f"{side}_weights"][line, :end] = piece.marks[part][:end]
                batch[f"{side}_segment_ids"][line, :end] = 1
                batch[f"{side}_positions"][line, :end] = np.arange(end)
            batch["margins"][line], batch["pair_weights"][line] = as_floats(margin, weight)


FIELDS = ("tokens", "weights", "segment_ids", "positions")


def as_floats(*bits: int) -> np.ndarray:
    """Float32 that lie in a store as the whole numbers of their bits (`tokenization.bits_of`)."""
    return np.array(bits, np.int32).view(np.float32)
