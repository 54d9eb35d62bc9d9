"""Rows of a task: one example each, framed as the encoder knows it, with its answer."""

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
    from hllm_jax.data.task import TaskDataConfig
    from hllm_jax.data.transforms.piece import Piece
    from hllm_jax.tokenizers.tokenizer import Tokenizer


class TaskRows:
    """One example a row (`ClassificationBatch`, `TaggingBatch`, `AnswerBatch`).

    Texts that are too long lose their ends: of two, the longer one first; of a question with its context the
    context, after the question was cut to `task.longest_question`. A question whose answer is cut off has no
    answer any more, which is answered by the first token of the row.

    Args:
        task: with its labels.
        tokenizer: its `frame` puts special tokens around one text and two.
        length: L.

    Raises:
        DataError: the labels are not known (see `TaskDataConfig.resolve`), or a row has no room for a text.
    """

    overlap = 0
    passes: int | None = None

    def __init__(self, task: TaskDataConfig, tokenizer: Tokenizer, length: int) -> None:
        if task.kind != "span" and not task.labels:
            raise DataError("the labels of the task are not known: TaskDataConfig.resolve(data) reads them")
        self.task, self.length, self.pad_id, self.frame = task, length, tokenizer.pad_id, tokenizer.frame
        self.form = Tokenization(special=False, task=task.kind, classes=task.labels)
        if self.room(pair=True) < 2:
            raise DataError(f"train.sequence_length={length} has no room for two texts")

    def room(self, pair: bool) -> int:
        """Tokens of text that a row has room for."""
        return self.length - len(self.frame([], [] if pair else None)[0])

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """One example a row."""
        counts = np.asarray(documents.lengths, np.int64)
        shown = np.minimum(counts, self.room(pair=self.task.kind == "span"))
        stats = {"documents": len(counts), **dict.fromkeys(COUNTED, 0)}
        stats |= {"truncated": int((shown < counts).sum()), "lost_tokens": int((counts - shown).sum())}
        stats["trained_tokens"] = len(counts)
        items = Items(np.arange(len(counts)), np.zeros(len(counts), np.int64), counts, stats)
        plan = arrangement.pack(items, np.full(len(counts), self.length), self.length)
        plan.stats["padding"] = len(counts) * self.length - int(shown.sum())
        plan.stats["pairs"] = int(shown.sum())
        return plan

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        row: tuple[int, ...] = (self.length,)
        fields = dict.fromkeys(("tokens", "segment_ids", "positions", "token_types"), row)
        if self.task.kind == "tokens":
            return blank(rows, fields | {"targets": row, "weights": row}, self.pad_id) | {
                "targets": np.zeros((rows, self.length), np.int32)
            }
        names = ("starts", "ends", "weights") if self.task.kind == "span" else ("labels", "weights")
        more: dict[str, tuple[int, ...]] = dict.fromkeys(names, ())
        if self.task.kind == "span":
            more["context"] = row
        return blank(rows, fields | more, self.pad_id)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        if not pieces:
            return
        (piece,) = pieces
        assert piece.marks is not None, "examples are marked"
        cut = len(piece.tokens) if self.task.kind == "tokens" else int((piece.marks == 0).sum())
        pair = cut < len(piece.tokens)
        first, second = self.shorten(cut, len(piece.tokens) - cut if pair else None)
        # The frame is put around the numbers of the tokens, -1 for the first, so that each is found again.
        places = [list(range(-1, -1 - first, -1)), list(range(-1 - cut, -1 - cut - second, -1))]
        framed, types = self.frame(places[0], places[1] if pair else None)
        numbers = -1 - np.array(framed, np.int64)
        inside = numbers >= 0
        count = len(framed)
        batch["tokens"][line, :count] = np.where(inside, piece.tokens[np.maximum(numbers, 0)], framed)
        batch["segment_ids"][line, :count] = 1
        batch["positions"][line, :count] = np.arange(count)
        batch["token_types"][line, :count] = types
        if self.task.kind == "tokens":
            marks = np.where(inside, piece.marks[np.maximum(numbers, 0)], 0).astype(np.int64)
            batch["targets"][line, :count] = np.maximum(marks - 1, 0)
            batch["weights"][line, :count] = marks > 0
            return
        batch["weights"][line] = 1.0
        if self.task.kind == "sequence":
            batch["labels"][line] = piece.labels[0]
            return
        context = inside & (numbers >= cut)
        batch["context"][line, :count] = context
        start, end = (int(label) for label in piece.labels)
        if start >= 0 and end < second:
            at = int(np.flatnonzero(context)[0])
            batch["starts"][line], batch["ends"][line] = at + start, at + end

    def shorten(self, first: int, second: int | None) -> tuple[int, int]:
        """How many tokens of each text are kept; `second` is None for a single text."""
        if second is None:
            return min(first, self.room(pair=False)), 0
        room = self.room(pair=True)
        if self.task.kind == "span":
            first = min(first, self.task.longest_question, room - 1)
            return first, min(second, room - first)
        surplus = max(first + second - room, 0)
        if first >= second:
            off = min(surplus, first - second)
            first, surplus = first - off, surplus - off
        else:
            off = min(surplus, second - first)
            second, surplus = second - off, surplus - off
        return first - surplus // 2, second - (surplus - surplus // 2)
