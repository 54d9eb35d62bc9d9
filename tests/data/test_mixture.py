"""Mixtures: exact shares after any number of rows, by random access."""

from __future__ import annotations

from collections import Counter

import pytest

from hllm_jax.data.mixture import Mixture


@pytest.mark.parametrize(
    "weights", [(1,), (1, 1), (0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02), (1, 1000), (3, 0.1)]
)
def test_every_prefix_has_the_shares(weights):
    mixture, seen = Mixture(weights), Counter()
    for row in range(3000):
        source, number = mixture.locate(row)
        assert number == seen[source]
        seen[source] += 1
        for i, weight in enumerate(weights):
            assert abs(seen[i] - (row + 1) * weight / sum(weights)) < 2


def test_shares_are_exact_after_whole_periods():
    mixture = Mixture((0.7, 0.2, 0.1))
    assert Counter(mixture.locate(row)[0] for row in range(10_000)) == {0: 7000, 1: 2000, 2: 1000}
    assert mixture.locate(10**15)[1] in range(10**14 - 1, 7 * 10**14 + 2)


def test_weights_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        Mixture((1, 0))
