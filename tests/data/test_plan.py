"""Plans: every pair once, orders that differ and repeat, packing that is full, policies that count."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hllm_jax.data import DataError
from hllm_jax.data.items import pairs_room, whole_documents
from hllm_jax.data.order import permutation
from hllm_jax.data.packing import pack_sizes
from hllm_jax.data.plan import ConcatPlan, FirstFitPlan

RANDOM = np.random.default_rng(0)


def first_fit(lengths, length, seed, overlong="truncate", shuffle=True, **weights):
    """Whole documents packed into rows of so many pairs."""
    items = whole_documents(lengths, pairs_room(length), overlong, **weights)
    return FirstFitPlan(items, length, seed, shuffle)


def covered(plan, epoch):
    """How often each (document, pair) stands in the epoch, and the rows."""
    rows = [plan.segments(epoch, row) for row in range(plan.rows)]
    pairs = Counter((s.document, s.start + i) for row in rows for s in row for i in range(s.count))
    return pairs, rows


def test_permutation_is_one_and_depends_on_every_part_of_the_key():
    orders = [permutation(1000, *key) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0)]]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1000))
    assert len({tuple(order) for order in orders}) == len(orders)
    assert (orders[0] == permutation(1000, 0, 0)).all()


def test_permutation_never_changes():
    # Checkpoints store a step number only: another order would break every resumed run.
    assert permutation(8, 3, 1).tolist() == [1, 0, 2, 4, 6, 7, 5, 3]


def test_permutation_is_even():
    first = Counter(int(permutation(10, seed)[0]) for seed in range(2000))
    assert set(first) == set(range(10))
    assert 130 < min(first.values()) <= max(first.values()) < 270


@pytest.mark.parametrize("length", [1, 7, 64, 5000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_concat_has_every_pair_once(length, shuffle):
    lengths = RANDOM.integers(1, 90, 50)
    plan = ConcatPlan(lengths, length, seed=5, shuffle=shuffle)
    for epoch in (0, 3):
        pairs, rows = covered(plan, epoch)
        assert set(pairs.values()) == {1}
        assert len(pairs) == int((lengths - 1).sum()) == plan.stats["pairs"]
        widths = [sum(s.count for s in row) for row in rows]
        assert max(widths) <= length
        assert sum(width < length for width in widths) <= 1
        assert sum(length - width for width in widths) == plan.stats["padding"]


def test_epochs_differ_and_repeat():
    lengths = RANDOM.integers(2, 90, 200)
    for kind in (ConcatPlan, first_fit):
        plans = [kind(lengths, 128, seed=seed) for seed in (0, 0, 1)]
        rows = [
            [[plan.segments(epoch, row) for row in range(plan.rows)] for epoch in (0, 1)] for plan in plans
        ]
        assert rows[0] == rows[1]
        assert rows[0][0] != rows[0][1]
        assert rows[0] != rows[2]


def test_without_shuffling_documents_come_in_order():
    plan = ConcatPlan(np.array([4, 3, 6]), 5, seed=0, shuffle=False)
    assert [[(s.document, s.start, s.count) for s in plan.segments(0, row)] for row in range(plan.rows)] == [
        [(0, 0, 3), (1, 0, 2)],
        [(2, 0, 5)],
    ]


@pytest.mark.parametrize("shuffle", [True, False])
def test_first_fit_keeps_documents_whole(shuffle):
    lengths = RANDOM.integers(2, 130, 500)
    plan = first_fit(lengths, 128, seed=1, shuffle=shuffle)
    pairs, rows = covered(plan, 2)
    assert set(pairs.values()) == {1}
    assert len(pairs) == int((lengths - 1).sum())
    assert all(s.start == 0 and s.count == lengths[s.document] - 1 for row in rows for s in row)
    assert all(row and sum(s.count for s in row) <= 128 for row in rows)
    if not shuffle:
        first = [min(s.document for s in row) for row in rows]
        assert first == sorted(first)


def test_packing_by_hand():
    # Rows of 10: 7 + 3, 6 + 4, 5 + 5, and the last 4 alone with 2 and 2.
    histogram = np.bincount([7, 3, 6, 4, 5, 5, 4, 2, 2], minlength=11)
    groups = pack_sizes(histogram, 10)
    assert sorted((sizes, rows) for sizes, rows in groups) == [
        ((4, 2, 2), 1),
        ((5, 5), 1),
        ((6, 4), 1),
        ((7, 3), 1),
    ]


@pytest.mark.parametrize("length", [1, 2, 31, 256])
def test_packing_places_every_item(length):
    for count in (1, 3, 1000):
        sizes = RANDOM.integers(1, length + 1, count)
        groups = pack_sizes(np.bincount(sizes, minlength=length + 1), length)
        packed = Counter()
        for row, times in groups:
            assert sum(row) <= length
            for size in row:
                packed[size] += times
        assert packed == Counter(sizes.tolist())
        # No two rows could be joined, so all but one are more than half full on average.
        assert sum(times for _, times in groups) <= 2 * -(-sizes.sum() // length)


def test_packing_is_full_for_millions():
    lengths = np.clip(RANDOM.lognormal(5.0, 0.8, 3_500_000), 8, 2000).astype(np.int32)
    plan = first_fit(lengths, 2048, seed=0)
    assert plan.stats["pairs"] == int((lengths - 1).sum(dtype=np.int64))
    assert plan.stats["pairs"] / (plan.rows * 2048) > 0.99
    assert 0 < sum(s.count for s in plan.segments(0, 0)) <= 2048


def overlong_plan(policy):
    # Rows of 4 pairs. Document 0 fits; 1 has 10 pairs, the last 3 trained; 2 has 6, the first trained.
    lengths = np.array([4, 11, 7])
    weights = [np.ones(4), np.r_[np.zeros(8), np.ones(3)], np.r_[0, 1, np.zeros(5)]]
    trained = np.array([int(w[1:].sum()) for w in weights])
    return first_fit(lengths, 4, 0, policy, trained=trained, weights_of=lambda i: weights[i])


def test_overlong_error_names_counts_and_remedy():
    with pytest.raises(DataError, match=r"2 of 3 records.*11 tokens, a row holds 5.*sequence_length.*split"):
        overlong_plan("error")


@pytest.mark.parametrize(
    ("policy", "kept", "expected"),
    [
        (
            "truncate",
            {(0, 0, 3), (2, 0, 4)},
            {
                "truncated": 2,
                "dropped_untrained": 1,
                "lost_tokens": 12,
                "trained_tokens": 4,
                "lost_trained_tokens": 3,
            },
        ),
        (
            "drop",
            {(0, 0, 3)},
            {"dropped_overlong": 2, "lost_tokens": 16, "trained_tokens": 3, "lost_trained_tokens": 4},
        ),
        (
            "split",
            {(0, 0, 3), (1, 4, 4), (1, 8, 2), (2, 0, 4)},
            {
                "split": 2,
                "dropped_untrained": 2,
                "lost_tokens": 6,
                "trained_tokens": 7,
                "lost_trained_tokens": 0,
            },
        ),
    ],
)
def test_overlong_policies_are_counted(policy, kept, expected):
    plan = overlong_plan(policy)
    _, rows = covered(plan, 0)
    assert {(s.document, s.start, s.count) for row in rows for s in row} == kept
    assert plan.stats["overlong"] == 2
    assert {name: plan.stats[name] for name in expected} == expected


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="no document is left"):
        first_fit(np.array([50, 60]), 4, 0, "drop")
