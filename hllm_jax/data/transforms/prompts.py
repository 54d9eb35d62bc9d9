"""Rows of prompts: one a row, from its first position on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.items import COUNTED, Items
from hllm_jax.data.tokenization import Tokenization
from hllm_jax.data.transforms.piece import Batch, blank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.prompts import PromptConfig
    from hllm_jax.data.transforms.piece import Piece

CUT = (
    "a prompt that is cut asks something else: set data.overlong to error, or to drop, which leaves long "
    "prompts out and counts them"
)


class PromptRows:
    """One prompt a row (`PromptBatch`), whatever `data.packing` says.

    Args:
        prompts: the section.
        pad_id: of the tokenizer.
        window: W.
    """

    overlap = 0
    passes: int | None = None

    def __init__(self, prompts: PromptConfig, pad_id: int, window: int) -> None:
        self.form = Tokenization(prompts=prompts)
        self.pad_id, self.window = pad_id, window

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Every prompt once an epoch.

        Raises:
            DataError: a prompt is longer than the window under `overlong: error` (the message names the first
                one), `overlong` would cut it, or none is left.
        """
        lengths = np.asarray(documents.lengths, np.int64)
        if arrangement.overlong not in ("error", "drop"):
            raise DataError(f"data.overlong={arrangement.overlong}: {CUT}")
        overlong = np.flatnonzero(lengths > self.window)
        if len(overlong) and arrangement.overlong == "error":
            first = int(overlong[0])
            raise DataError(
                f"{len(overlong)} of {len(lengths)} prompts are longer than the window of {self.window} "
                f"tokens, this one first, with {lengths[first]} (the longest has {lengths.max()}); raise the "
                "window (rollout.prompt_window), or set data.overlong: drop",
                documents.place_of(first) if documents.place_of else None,
            )
        kept = np.flatnonzero(lengths <= self.window)
        if not len(kept):
            raise DataError(
                f"no prompt of {len(lengths)} fits into a window of {self.window} tokens (the shortest has "
                f"{lengths.min()}): raise rollout.prompt_window"
            )
        stats = {"documents": len(lengths), "overlong": len(overlong), **dict.fromkeys(COUNTED, 0)}
        stats |= {"dropped_overlong": len(overlong), "trained_tokens": 0}
        stats["lost_tokens"] = int(lengths[overlong].sum())
        items = Items(kept, np.zeros(len(kept), np.int64), lengths[kept], stats)
        plan = arrangement.pack(items, np.full(len(kept), self.window), self.window)
        plan.stats["padding"] = plan.rows * self.window - int(lengths[kept].sum())
        return plan

    def empty(self, rows: int) -> Batch:
        """A batch that is still to be written."""
        return blank(rows, {"tokens": (self.window,), "lengths": (), "records": ()}, self.pad_id)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        (piece,) = pieces
        batch["tokens"][line, : len(piece.tokens)] = piece.tokens
        batch["lengths"][line] = len(piece.tokens)
        batch["records"][line] = piece.number
