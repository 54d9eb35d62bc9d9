"""Reward losses by hand, and what a reward model is held against."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.objectives import mean, reward
from hllm_jax.objectives.reward import Reliability, calibration_error, longer_wins, margin_histogram

# Compiled once each, not operation by operation.
pairwise_sums = jax.jit(reward.pairwise_sums, static_argnames="centering")
ranking_sums = jax.jit(reward.ranking_sums, static_argnames="centering")
reliability = jax.jit(reward.reliability, static_argnames="bins")


def test_pairs_by_hand() -> None:
    chosen, rejected, weights = np.asarray([[2.0, np.nan], [1.0, 5.0], [1.0, 0.0]], np.float32)
    found = mean(pairwise_sums(chosen, rejected, weights))
    np.testing.assert_allclose(found["loss"], 0.3132617, rtol=1e-6)
    assert [float(found[name]) for name in ("accuracy", "margin", "reward_chosen")] == [1, 1, 2]
    wanted = mean(pairwise_sums(chosen, rejected, weights, np.asarray([1.0, 9.0], np.float32)))
    np.testing.assert_allclose(wanted["loss"], np.log(2), rtol=1e-6)
    centred = mean(pairwise_sums(chosen, rejected, weights, centering=0.01))
    np.testing.assert_allclose(centred["loss"], 0.3132617 + 0.09, rtol=1e-6)


def test_rankings_by_hand() -> None:
    scores, ranks = np.asarray([[2.0, 1.0, 1.0]], np.float32), np.asarray([[0, 1, 2]])
    found = mean(ranking_sums(scores, ranks, np.ones((1, 3))))
    np.testing.assert_allclose(found["loss"], 0.4398902, rtol=1e-6)
    np.testing.assert_allclose([found["accuracy"], found["margin"]], [2 / 3, 2 / 3], rtol=1e-6)


def test_rankings_are_the_mean_over_prompts_of_the_mean_over_pairs() -> None:
    """Two to four answers of four, ties, answers in any order, a prompt with none: against a plain loop."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 4)).astype(np.float32)
    ranks = np.asarray([[3, 0, 2, 1], [1, 0, 1, 9], [0, 1, 7, 7], [2, 2, 2, 2], [0, 1, 2, 3]])
    weights = np.asarray([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    of_prompts = []
    for row in range(5):
        losses = [
            np.log1p(np.exp(-(scores[row, i] - scores[row, j])))
            for i, j in itertools.permutations(range(4), 2)
            if weights[row, i] and weights[row, j] and ranks[row, i] < ranks[row, j]
        ]
        of_prompts += [np.mean(losses)] if losses else []
    scores[weights == 0] = np.nan
    sums = ranking_sums(scores, ranks, weights)
    assert float(sums["loss"][1]) == len(of_prompts) == 3
    np.testing.assert_allclose(mean(sums)["loss"], np.mean(of_prompts), rtol=1e-6)


def test_a_ranking_of_two_is_a_pair() -> None:
    rng = np.random.default_rng(1)
    chosen, rejected = rng.normal(size=(2, 6)).astype(np.float32)
    pairs = mean(pairwise_sums(chosen, rejected, np.ones(6), centering=0.01))
    scores, ranks = np.stack([rejected, chosen], 1), np.tile([1, 0], (6, 1))
    ranked = mean(ranking_sums(scores, ranks, np.ones((6, 2)), centering=0.01))
    for name in ("loss", "accuracy", "margin"):
        np.testing.assert_allclose(ranked[name], pairs[name], rtol=1e-6)


def test_the_longer_answer_as_a_baseline() -> None:
    chosen, rejected = jnp.asarray([5, 3, 4, 9]), jnp.asarray([4, 6, 4, 1])
    weights = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    assert float(mean({"longer": longer_wins(chosen, rejected, weights)})["longer"]) == 0.5


def test_margins_are_counted_between_edges() -> None:
    margins = jnp.asarray([-2.0, -1.0, 0.5, 1.0, 3.0, jnp.nan])
    weights = jnp.asarray([1.0, 1.0, 1.0, 0.5, 1.0, 0.0])
    counts = margin_histogram(margins, jnp.zeros(6), weights, jnp.asarray([-1.0, 0.0, 1.0]))
    assert counts.tolist() == [1.0, 1.0, 1.0, 1.5]


def test_calibration_by_hand() -> None:
    """Confidence 0.6 (right twice of three) and 0.95 (right once of one), bins of width 0.1.

    |2 - 1.8|/4 + |1 - 0.95|/4 = 0.0625
    """
    near, far = np.log(0.6 / 0.4) + 1e-3, np.log(0.95 / 0.05)
    chosen = np.asarray([near, -near, near, far, 77.0], np.float32)
    weights = np.asarray([1, 1, 1, 1, 0], np.float32)
    bins = reliability(chosen, np.zeros(5, np.float32), weights, bins=5)
    assert bins.count.tolist() == [0, 3, 0, 0, 1]
    assert bins.right.tolist() == [0, 2, 0, 0, 1]
    np.testing.assert_allclose(bins.confidence, [0, 1.8, 0, 0, 0.95], atol=2e-3)
    np.testing.assert_allclose(calibration_error(bins), (0.2 + 0.05) / 4, atol=1e-3)
    zeros = np.zeros(5, np.float32)
    parts = [reliability(chosen[i], zeros[i], weights[i], bins=5) for i in (slice(2), slice(2, 5))]
    together = Reliability(*(a + b for a, b in zip(*parts, strict=True)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, bins)


def test_a_model_that_means_what_it_says_is_calibrated() -> None:
    """Every margin m stands there with its own frequency of being right: no error but that of the bins."""
    margins = np.linspace(0.05, 5, 200)
    p = 1 / (1 + np.exp(-margins))
    chosen = np.concatenate([margins, -margins]).astype(np.float32)
    weights = np.concatenate([p, 1 - p]).astype(np.float32)
    honest = calibration_error(reliability(chosen, np.zeros_like(chosen), weights))
    boasting = calibration_error(reliability(3 * chosen, np.zeros_like(chosen), weights))
    assert float(honest) < 1e-5
    assert float(boasting) > 0.03
