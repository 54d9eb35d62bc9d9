"""The plan of sentence pairs: half as written, every token once an epoch, negatives from elsewhere."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from hllm_jax.data import DataError
from hllm_jax.data.items import Segment, whole_sentences
from hllm_jax.data.pairs import PairPlan

RANDOM = np.random.default_rng(0)
SENTENCES = [RANDOM.integers(1, 30, RANDOM.integers(1, 20)) for _ in range(150)]
LENGTHS = np.array([sentences.sum() for sentences in SENTENCES])
ENDS = np.cumsum(np.concatenate(SENTENCES))
BEGINS = np.cumsum(LENGTHS) - LENGTHS


def plan_of(kind: Literal["nsp", "sop"], seed: int = 0, passes: int | None = None) -> PairPlan:
    return PairPlan(LENGTHS, ENDS, 61, kind, seed, passes=passes)


def follows(first: Segment, second: Segment) -> bool:
    return (second.document, second.start) == (first.document, first.start + first.count)


def test_swapped_or_not_every_token_is_there_once() -> None:
    plan = plan_of("sop")
    for epoch in (0, 1):
        seen = np.zeros(LENGTHS.sum(), int)
        in_order = 0
        for row in range(plan.rows):
            first, second = plan.segments(epoch, row)
            in_order += follows(first, second)
            assert follows(first, second) or follows(second, first)
            assert first.count + second.count <= 61
            for segment in (first, second):
                seen[BEGINS[segment.document] + segment.start :][: segment.count] += 1
        lost = int((LENGTHS == 1).sum())
        assert (seen <= 1).all()
        assert (seen == 0).sum() == plan.stats["lost_tokens"] >= lost
        assert abs(in_order - plan.rows / 2) < 5 * (plan.rows / 4) ** 0.5


def test_negatives_are_whole_sentences_of_other_documents() -> None:
    plan = plan_of("nsp")
    own = 0
    documents: set[int] = set()
    for row in range(plan.rows):
        first, second = plan.segments(0, row)
        if follows(first, second):
            own += 1
            continue
        assert first.document != second.document
        documents.add(second.document)
        begin = BEGINS[second.document] + second.start
        assert second.start == 0 or begin in ENDS
        assert begin + second.count in ENDS
        assert 0 < second.count <= LENGTHS[second.document] - second.start
    assert abs(own - plan.rows / 2) < 5 * (plan.rows / 4) ** 0.5
    assert len(documents) > 50


def test_a_stretch_is_split_at_a_sentence() -> None:
    plan = plan_of("sop")
    inside = 0
    for row in range(plan.rows):
        first, second = sorted(plan.segments(0, row), key=lambda segment: segment.start)
        begin, cut, stop = (
            BEGINS[first.document] + at for at in (first.start, second.start, second.start + second.count)
        )
        if ((begin < ENDS) & (stop > ENDS)).any():
            assert cut in ENDS
            inside += 1
    assert inside > plan.rows / 2


def test_orders_repeat_and_passes_come_again() -> None:
    def rows(plan: PairPlan, epoch: int) -> list[tuple[Segment, ...]]:
        return [tuple(plan.segments(epoch, row)) for row in range(plan.rows)]

    assert rows(plan_of("nsp"), 3) == rows(plan_of("nsp"), 3) != rows(plan_of("nsp", seed=1), 3)
    free, bound = plan_of("nsp"), plan_of("nsp", passes=1)
    assert set(rows(free, 0)) != set(rows(free, 1))
    assert set(rows(bound, 0)) == set(rows(bound, 1))
    assert rows(bound, 0) != rows(bound, 1)


def test_one_document_has_no_negatives() -> None:
    with pytest.raises(DataError, match="one document only"):
        PairPlan(np.array([10]), np.array([4, 10]), 20, "nsp", 0)


def test_whole_sentences_by_hand() -> None:
    """Room for 10: sentences of 4, 5, 3, 12 become 4 + 5, 3, and 12 cut into 10 + 2; then 2 by themselves."""
    ends = np.cumsum([4, 5, 3, 12, 2])
    items = whole_sentences(np.array([24, 2]), ends, 10)
    order = np.lexsort((items.starts, items.documents))
    pieces = [(int(items.documents[i]), int(items.starts[i]), int(items.counts[i])) for i in order]
    assert pieces == [(0, 0, 9), (0, 9, 3), (0, 12, 10), (0, 22, 2), (1, 0, 2)]
    assert items.stats["lost_tokens"] == 0
    few = whole_sentences(np.array([24, 2]), ends, 10, shortest=3)
    assert few.stats["lost_tokens"] == 4
    with pytest.raises(DataError, match="no piece of at least 5 tokens"):
        whole_sentences(np.array([2]), np.array([2]), 10, shortest=5)
