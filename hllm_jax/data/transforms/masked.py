"""Masked language models: packed pieces, rows of full sentences, and sentence pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from hllm_jax.data.items import Room, whole_sentences
from hllm_jax.data.pairs import PairPlan
from hllm_jax.data.tokenization import Tokenization
from hllm_jax.data.transforms.masking import choose, choose_words, replace
from hllm_jax.data.transforms.piece import Batch, blank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.boundaries import Segmenter
    from hllm_jax.data.documents import Arrangement, Documents
    from hllm_jax.data.order import Draws
    from hllm_jax.data.plan import Plan
    from hllm_jax.data.transforms.masking import Masking
    from hllm_jax.data.transforms.piece import Piece

CHOOSE, TRUNCATE = 11, 12  # purposes of draws


class MaskedRows:
    """Rows of a masked language model (`MaskedBatch`). Only tokens of the text are ever chosen.

    - `packed`: every piece is a segment of its own, `[CLS] piece [SEP]`.
    - `full_sentences`: that of Liu et al. 2019, section 4.2: a row is one segment,
      `[CLS] sentences [SEP] sentences of another document [SEP] …`.

    Args:
        length: L.
        ids: pad, `[CLS]` and `[SEP]`.
        masking: how tokens are chosen.
        rows: see above.
        continues_word: bool [V], tokens that go on with the word before them, to choose whole words; None:
            tokens are chosen one by one, or by the words that the store has.
        segmenter: of the words that the store has.
        passes: see `Transform`; 1 is a mask that is the same in every epoch.
    """

    overlap = 0

    def __init__(
        self,
        length: int,
        ids: tuple[int, int, int],
        masking: Masking,
        rows: Literal["packed", "full_sentences"] = "packed",
        continues_word: np.ndarray | None = None,
        segmenter: Segmenter | None = None,
        passes: int | None = None,
    ) -> None:
        self.length, self.masking, self.continues_word, self.passes = length, masking, continues_word, passes
        self.pad_id, self.cls_id, self.sep_id = ids
        self.full_sentences = rows == "full_sentences"
        self.form = Tokenization(special=False, sentences=self.full_sentences, words=segmenter)

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Pieces cut by length, or after whole sentences; packed."""
        if self.full_sentences:
            # The first special token is the row's, every piece adds one.
            capacity, each = self.length - 1, 1
            items = whole_sentences(documents.lengths, documents.sentence_ends, self.length - 2)
        else:
            capacity, each = self.length, 2
            room = Room(capacity, self.length - 2)
            items = arrangement.pieces(documents, room, self.masking.count(documents.lengths))
        return arrangement.pack(
            items, items.counts + each, capacity, int(self.masking.count(items.counts).sum())
        )

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        names = ("tokens", "targets", "weights", "segment_ids", "positions")
        return blank(rows, dict.fromkeys(names, (self.length,)), self.pad_id)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        at = 0
        for number, piece in enumerate(pieces, start=1):
            start = at
            if number == 1 or not self.full_sentences:
                at = self.put_special(batch, line, at, self.cls_id)
            at = self.put_text(batch, line, at, piece.tokens, piece.marks, piece.draws(CHOOSE))
            if not self.full_sentences:
                self.put_segment(batch, line, start, at, number)
        if self.full_sentences:
            self.put_segment(batch, line, 0, at, 1)

    def choose(self, tokens: np.ndarray, marks: np.ndarray | None, draws: Draws) -> np.ndarray:
        """bool [tokens]: which of them are to be guessed."""
        budget = int(self.masking.count(np.array(len(tokens))))
        if self.form.words is not None:
            assert marks is not None, "the store has words"
            begins = marks > 0
        elif self.continues_word is not None:
            begins = ~self.continues_word[tokens]
        elif self.masking.ngram == 1:
            return choose(len(tokens), budget, draws)
        else:
            begins = np.ones(len(tokens), bool)
        return choose_words(begins, budget, self.masking.ngram, draws)

    def put_text(
        self, batch: Batch, line: int, at: int, tokens: np.ndarray, marks: np.ndarray | None, draws: Draws
    ) -> int:
        """Write a text from position `at` on, some tokens hidden, and `[SEP]`; returns where it ends."""
        end = at + len(tokens)
        chosen = self.choose(tokens, marks, draws)
        batch["tokens"][line, at:end] = replace(tokens, chosen, self.masking, draws)
        batch["targets"][line, at:end] = tokens
        batch["weights"][line, at:end] = chosen
        return self.put_special(batch, line, end, self.sep_id)

    def put_special(self, batch: Batch, line: int, at: int, token: int) -> int:
        """Write a special token, which is never a target; returns where it ends."""
        batch["tokens"][line, at] = batch["targets"][line, at] = token
        return at + 1

    def put_segment(self, batch: Batch, line: int, start: int, stop: int, number: int) -> None:
        """Say that positions `start` to `stop` are segment `number`."""
        batch["segment_ids"][line, start:stop] = number
        batch["positions"][line, start:stop] = np.arange(stop - start)


class SentencePairRows(MaskedRows):
    """Rows `[CLS] A [SEP] B [SEP]` with the question whether B follows A (`SentencePairBatch`).

    What `PairPlan` puts together is shortened to the row as BERT does it: while it is too long, the longer of
    the two (B, if they are equal) loses its first or its last token, with equal chances.

    Args:
        length: L.
        ids: pad, `[CLS]` and `[SEP]`.
        masking: how tokens are chosen.
        kind: "nsp" or "sop", see `PairPlan`.
        short: share of shorter rows, see `PairPlan`.
        continues_word, segmenter, passes: see `MaskedRows`.
    """

    def __init__(
        self,
        length: int,
        ids: tuple[int, int, int],
        masking: Masking,
        kind: Literal["nsp", "sop"],
        short: float = 0.1,
        continues_word: np.ndarray | None = None,
        segmenter: Segmenter | None = None,
        passes: int | None = None,
    ) -> None:
        super().__init__(length, ids, masking, "full_sentences", continues_word, segmenter, passes)
        self.kind: Literal["nsp", "sop"] = kind
        self.short, self.longest = short, length - 3

    def plan(self, documents: Documents, arrangement: Arrangement) -> Plan:
        """Pairs of stretches of whole sentences, one a row."""
        how = arrangement
        plan = PairPlan(
            documents.lengths,
            documents.sentence_ends,
            self.longest,
            self.kind,
            how.seed,
            self.short,
            how.shuffle,
            how.passes,
        )
        plan.stats["trained_tokens"] = int(self.masking.count(plan.items.counts).sum())
        return plan

    def empty(self, rows: int) -> Batch:
        """A batch of so many rows of padding."""
        extra = {"token_types": (self.length,), "pair_labels": (), "pair_weights": ()}
        return super().empty(rows) | blank(rows, extra, self.pad_id)

    def write(self, batch: Batch, line: int, pieces: Sequence[Piece]) -> None:
        """Fill a row."""
        if not pieces:
            return
        first, second = pieces
        follows = second.document == first.document and second.start == first.start + len(first.tokens)
        kept = truncate_pair(len(first.tokens), len(second.tokens), self.longest, first.draws(TRUNCATE))
        draws = first.draws(CHOOSE)
        at = self.put_special(batch, line, 0, self.cls_id)
        for number, (piece, where) in enumerate(zip(pieces, kept, strict=True)):
            start, marks = at, None if piece.marks is None else piece.marks[where]
            at = self.put_text(batch, line, at, piece.tokens[where], marks, draws)
            batch["token_types"][line, start:at] = number
        self.put_segment(batch, line, 0, at, 1)
        batch["pair_labels"][line] = int(not follows)
        batch["pair_weights"][line] = 1.0


def truncate_pair(first: int, second: int, longest: int, draws: Draws) -> tuple[slice, slice]:
    """The parts of two texts of so many tokens that remain when both together may have `longest`.

    One token at a time: the longer text (the second, if they are equal) loses its first or its last.
    """
    lengths, fronts = [first, second], [0, 0]
    surplus = first + second - longest
    coins = draws.integers(max(surplus, 0), 2)
    for coin in coins.tolist():
        longer = 0 if lengths[0] > lengths[1] else 1
        lengths[longer] -= 1
        fronts[longer] += coin
    return (
        slice(fronts[0], fronts[0] + lengths[0]),
        slice(fronts[1], fronts[1] + lengths[1]),
    )
