"""Prefix language models: the rows of causal ones, split at random, targets after the prefix only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data.transforms.doubles import batches_of, equal, rows_of


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_rows_are_those_of_a_causal_model_with_a_prefix(tmp_path: Path, packing: str) -> None:
    causal = batches_of(tmp_path, "causal", packing=packing)
    prefix = batches_of(tmp_path, "prefix_lm", packing=packing)
    assert len(causal) == len(prefix)
    for n in range(len(causal)):
        a, b = causal[n], prefix[n]
        for name in ("tokens", "targets", "segment_ids", "positions"):
            assert (a[name] == b[name]).all()


def test_the_prefix_begins_its_segment_and_the_rest_is_learned(tmp_path: Path) -> None:
    for row in rows_of(batches_of(tmp_path, "prefix_lm")):
        for number in range(1, int(row["segment_ids"].max()) + 1):
            where = row["segment_ids"] == number
            prefix, weights = row["prefix"][where], row["weights"][where]
            count = int(prefix.sum())
            assert 1 <= count <= len(prefix)
            assert prefix[:count].all()
            assert not weights[: count - 1].any(), "a target that the prefix shows is not learned"
            assert weights[count - 1 :].all(), "the last token of the prefix predicts what comes after it"
        assert not row["prefix"][row["segment_ids"] == 0].any()


def test_splits_are_uniform(tmp_path: Path) -> None:
    """Texts of 8 tokens with begin and end are 9 pairs: the prefix has 1 to 9 tokens."""
    batches = batches_of(tmp_path, "prefix_lm", ["a" * 8] * 900, packing="none", epochs=1, length=9)
    sizes = Counter(int(row["prefix"].sum()) for row in rows_of(batches))
    assert set(sizes) == set(range(1, 10))
    assert all(abs(count - 100) < 5 * (900 / 9 * 8 / 9) ** 0.5 for count in sizes.values())


def test_epochs_differ_and_the_same_batch_comes_again(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "prefix_lm", epochs=None)
    again = batches_of(tmp_path, "prefix_lm", epochs=None)
    assert all(equal(batches[n], again[n]) for n in range(5))
    first, second = (np.concatenate([row["prefix"] for row in rows_of(batches, epoch)]) for epoch in range(2))
    assert (first != second).any()
