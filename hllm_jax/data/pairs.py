"""The plan of sentence pairs: what follows what, for next-sentence and sentence-order prediction."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.items import Segment, whole_sentences
from hllm_jax.data.order import GOLDEN, Draws, mix, permutation, state_of
from hllm_jax.data.plan import ROWS, pass_of

PAIRS, SHORT = 2, 3  # purposes of draws, beside those of `plan`


class PairPlan:
    """Every row is a pair (A, B) of stretches of whole sentences.

    Documents are cut into stretches of as many whole sentences as a row holds (a tenth of them are shorter,
    so that a model sees short inputs too), and a stretch is split into A and B at a sentence's end; one of a
    single sentence is split anywhere. Half of the rows keep that pair. In the others

    - `nsp`: B comes from another document, from a random sentence on, in whole sentences until it is at
      least as long as what it replaces (Devlin et al. 2019, appendix A.2; there the replaced rest is used
      again in the next row, here it waits for the next pass);
    - `sop`: A and B are swapped (Lan et al. 2020, section 3.1).

    So a row is a pair as written exactly if its second segment begins where the first one ends.

    Args:
        lengths: int [N], tokens of each document.
        sentence_ends: int [S], ascending: where each sentence ends in the tokens of all documents joined.
        longest: most tokens of A and B together.
        kind: "nsp" or "sop".
        seed: of everything.
        short: share of the stretches whose length is drawn from 2 to `longest`.
        shuffle: a random order of rows in every epoch.
        passes: see `plan`.

    Raises:
        DataError: `nsp` with a single document, or no document of two tokens.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        sentence_ends: np.ndarray,
        longest: int,
        kind: Literal["nsp", "sop"],
        seed: int,
        short: float = 0.1,
        shuffle: bool = True,
        passes: int | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.sentence_ends, self.longest, self.kind = sentence_ends, longest, kind
        self.seed, self.shuffle, self.passes = seed, shuffle, passes
        if kind == "nsp" and len(lengths) < 2:
            raise DataError(
                "next-sentence pairs (objective.masked_lm.rows: nsp) take their negatives from other "
                "documents, and there is one document only; give more, or use sop"
            )

        def limits(documents: np.ndarray, number: int) -> np.ndarray:
            state = np.uint64(state_of(seed, SHORT, number))
            share = (mix(documents.astype(np.uint64) * np.uint64(GOLDEN) + state) >> np.uint64(11)) * 2.0**-53
            drawn = 2 + (share / max(short, 1e-9) * (longest - 1)).astype(np.int64)
            return np.where(share < short, np.minimum(drawn, longest), longest)

        self.items = whole_sentences(self.lengths, sentence_ends, longest, 2, limits)
        self.rows = len(self.items.counts)
        total = int(self.items.counts.sum())
        self.stats = self.items.stats | {
            "rows": self.rows,
            "pairs": total,
            "padding": self.rows * longest - total,
        }
        self.epoch = functools.lru_cache(maxsize=2)(self.compute_epoch)

    def compute_epoch(self, epoch: int) -> np.ndarray:
        """The stretch of each row number."""
        return permutation(self.rows, self.seed, epoch, ROWS) if self.shuffle else np.arange(self.rows)

    def segments(self, epoch: int, row: int) -> list[Segment]:
        """A and B, in the order in which they stand in the row."""
        item = int(self.epoch(epoch)[row])
        draws = Draws(self.seed, pass_of(epoch, self.passes), item, PAIRS)
        document, start, count = (
            int(column[item]) for column in (self.items.documents, self.items.starts, self.items.counts)
        )
        begin = int(self.begins[document]) + start
        first, last = np.searchsorted(self.sentence_ends, [begin, begin + count - 1], "right")
        if last > first:
            cut = int(self.sentence_ends[first + draws.integer(int(last - first))]) - begin
        else:
            cut = 1 + draws.integer(count - 1)
        a, b = Segment(document, start, cut), Segment(document, start + cut, count - cut)
        if draws.integer(2) == 0:
            return [a, b]
        return [b, a] if self.kind == "sop" else [a, self.elsewhere(document, b.count, draws)]

    def elsewhere(self, document: int, count: int, draws: Draws) -> Segment:
        """At least so many tokens, if there are as many, from a random sentence of another document."""
        other = draws.integer(len(self.lengths) - 1)
        other += other >= document
        begin, length = int(self.begins[other]), int(self.lengths[other])
        first = int(np.searchsorted(self.sentence_ends, begin, "right"))
        behind = int(np.searchsorted(self.sentence_ends, begin + length, "left")) + 1
        sentence = first + draws.integer(behind - first)
        start = begin if sentence == first else int(self.sentence_ends[sentence - 1])
        enough = int(np.searchsorted(self.sentence_ends, start + count, "left"))
        stop = int(self.sentence_ends[min(enough, behind - 1)])
        return Segment(other, start - begin, stop - start)
