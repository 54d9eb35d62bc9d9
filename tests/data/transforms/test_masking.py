"""Which tokens are chosen and what replaces them: exact counts, shares within bounds, whole words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hllm_jax.data.order import Draws
from hllm_jax.data.transforms.masking import Masking, choose, choose_words, replace


def within(count: int, trials: int, chance: float) -> bool:
    """Whether a count is within five standard deviations of a binomial's mean."""
    return abs(count - trials * chance) < 5 * (trials * chance * (1 - chance)) ** 0.5 + 1


def test_the_share_is_rounded_and_at_least_one() -> None:
    masking = Masking(0, np.arange(1, 9))
    assert masking.count(np.array([1, 3, 10, 20, 100, 127])).tolist() == [1, 1, 2, 3, 15, 19]


def test_choose_takes_exactly_so_many_and_every_token_equally_often() -> None:
    often = np.zeros(20)
    for number in range(3000):
        chosen = choose(20, 3, Draws(number))
        assert chosen.sum() == 3
        often += chosen
    assert all(within(int(count), 3000, 3 / 20) for count in often)


def test_replacements_have_their_shares() -> None:
    """80 % the mask, 10 % another token, 10 % the same; of 40 random ones one in 40 is the same by chance."""
    masking = Masking(99, np.arange(40, dtype=np.int32))
    tokens = np.full(50_000, 7, np.int32)
    chosen = np.arange(50_000) % 2 == 0
    seen = replace(tokens, chosen, masking, Draws(1))
    assert (seen[~chosen] == 7).all()
    counts = Counter(seen[chosen].tolist())
    assert within(counts[99], 25_000, 0.8)
    assert within(counts[7], 25_000, 0.1 + 0.1 / 40)
    others = [counts[token] for token in range(40) if token != 7]
    assert all(within(count, 25_000, 0.1 / 40) for count in others)
    assert sum(others) + counts[99] + counts[7] == 25_000


def test_words_are_chosen_whole_within_the_budget() -> None:
    """Words of 1, 2, 3, 1, 2, 3, … tokens."""
    begins = np.zeros(60, bool)
    begins[[start + offset for start in range(0, 60, 6) for offset in (0, 1, 3)]] = True
    words = np.cumsum(begins) - 1
    sizes = np.bincount(words)
    totals = Counter()
    for number in range(500):
        chosen = choose_words(begins, 9, 1, Draws(number))
        for word in np.unique(words[chosen]):
            assert chosen[words == word].all(), "a word is chosen as a whole"
        totals[int(chosen.sum())] += 1
        assert chosen.sum() <= 9
    assert totals[9] > 450  # words of one token fill up what others leave
    assert set(sizes.tolist()) == {1, 2, 3}


def test_a_word_that_exceeds_the_budget_is_passed_over() -> None:
    begins = np.array([True, False, False, True])
    assert choose_words(begins, 1, 1, Draws(0)).tolist() == [False, False, False, True]
    assert not choose_words(np.array([True, False, False]), 2, 1, Draws(0)).any()


def test_the_first_token_begins_a_word_whatever_it_says() -> None:
    assert choose_words(np.array([False, False]), 2, 1, Draws(0)).tolist() == [True, True]


def test_ngrams_follow_their_distribution() -> None:
    """p(n) ∝ 1/n for n ≤ 3 is 6/11, 3/11, 2/11; measured on lone n-grams far apart in a long text."""
    runs: Counter[int] = Counter()
    for number in range(3000):
        chosen = np.flatnonzero(choose_words(np.ones(4000, bool), 3, 3, Draws(number)))
        first = chosen[: np.flatnonzero(np.diff(np.r_[chosen, 10**6]) > 1)[0] + 1]
        # One n-gram fills the budget exactly or leaves room for others: count rows whose first drawn n is 3,
        # which are those of one run of three.
        runs[len(first) == 3] += 1
    assert within(runs[True], 3000, 2 / 11)
    assert runs[False] > 0


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_choosing_is_a_function_of_the_key(ngram: int) -> None:
    begins = np.ones(50, bool)
    first, again, other = (choose_words(begins, 8, ngram, Draws(key)) for key in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
