"""Preference losses by hand, and the metrics that go with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import mean, preference
from hllm_jax.objectives.preference import Pair, answers, kto_baseline

# Compiled once each, not operation by operation.
dpo_sums = jax.jit(preference.dpo_sums, static_argnames="label_smoothing")
ipo_sums, orpo_sums, simpo_sums, kto_sums = (
    jax.jit(of)
    for of in (preference.ipo_sums, preference.orpo_sums, preference.simpo_sums, preference.kto_sums)
)
POLICY = Pair(jnp.asarray([-3.0, 7.0]), jnp.asarray([-6.0, jnp.nan]))
REFERENCE = Pair(jnp.asarray([-5.0, 7.0]), jnp.asarray([-5.0, 1.0]))
#: The second pair is left out.
WEIGHTS = jnp.asarray([1.0, 0.0])


def test_dpo_by_hand() -> None:
    found = mean(dpo_sums(POLICY, REFERENCE, WEIGHTS))
    np.testing.assert_allclose(found["loss"], 0.5543552, rtol=1e-6)
    np.testing.assert_allclose(
        [found[name] for name in ("reward_chosen", "reward_rejected", "margin", "accuracy")],
        [0.2, -0.1, 0.3, 1],
        rtol=1e-6,
    )
    smoothed = mean(dpo_sums(POLICY, REFERENCE, WEIGHTS, label_smoothing=0.1))
    np.testing.assert_allclose(smoothed["loss"], 0.5843552, rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_before_the_first_step_the_loss_is_ln_2_and_the_gradient_is_not_zero(label_smoothing: float) -> None:
    def loss(policy: Pair) -> jax.Array:
        return mean(dpo_sums(policy, REFERENCE, jnp.ones(2), label_smoothing=label_smoothing))["loss"]

    value, gradient = jax.value_and_grad(loss)(REFERENCE)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    # -β·(σ(0) - ε)/2 for each of two pairs.
    np.testing.assert_allclose(gradient.chosen, np.full(2, -0.05 * (0.5 - label_smoothing)), rtol=1e-5)
    found = mean(dpo_sums(REFERENCE, REFERENCE, jnp.ones(2)))
    assert (float(found["margin"]), float(found["accuracy"])) == (0, 0)


def test_ipo_by_hand() -> None:
    found = mean(ipo_sums(POLICY, REFERENCE, WEIGHTS, 0.1))
    np.testing.assert_allclose([found["loss"], found["margin"]], [4, 0.3], rtol=1e-6)


def test_orpo_by_hand() -> None:
    policy = Pair(jnp.log(jnp.asarray([0.5, jnp.nan])), jnp.log(jnp.asarray([0.25, 1.0])))
    found = mean(orpo_sums(policy, WEIGHTS, 0.1))
    np.testing.assert_allclose(found["loss"], np.log(2) + 0.1 * np.log(4 / 3), rtol=1e-6)
    np.testing.assert_allclose([found["nll"], found["log_odds"]], [np.log(2), np.log(3)], rtol=1e-6)


def test_orpo_near_certainty_and_near_impossibility() -> None:
    """log(1 - exp(x)) is what cancels: compared with float64."""
    x = np.asarray([-1e-5, -1e-2, -0.69, -0.7, -5.0, -80.0])
    odds = x - np.log(-np.expm1(x))
    policy = Pair(jnp.asarray(x, jnp.float32), jnp.full(6, -np.log(2), jnp.float32))

    def loss(policy: Pair) -> jax.Array:
        return orpo_sums(policy, jnp.ones(6), 1.0)["log_odds"][0]

    np.testing.assert_allclose(loss(policy), odds.sum(), rtol=1e-5)
    gradient = jax.grad(lambda p: orpo_sums(p, jnp.ones(6), 1.0)["loss"][0])(policy)
    assert np.all(np.isfinite(gradient.chosen))


def test_orpo_of_certain_answers_is_finite() -> None:
    """Of short answers that are known by heart the mean log-probability is 0 in float32."""

    def loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return mean(orpo_sums(Pair(chosen, rejected), jnp.ones(1)))["loss"]

    certain, likely = jnp.zeros(1), jnp.asarray([-0.5])
    for sides in ((certain, likely), (likely, certain), (certain, certain)):
        found = jax.value_and_grad(loss, argnums=(0, 1))(*sides)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_simpo_by_hand() -> None:
    means = Pair(jnp.asarray([-1.0, jnp.nan]), jnp.asarray([-2.0, 3.0]))
    found = mean(simpo_sums(means, WEIGHTS, 2.0, 1.0))
    np.testing.assert_allclose([found["loss"], found["margin"]], [0.3132617, 2], rtol=1e-6)


def test_kto_by_hand() -> None:
    """Log-ratio 2, β = 1/2: good 1 - σ(1), bad 1 - σ(-1); the third row is left out."""
    policy, reference = jnp.asarray([-3.0, -3.0, jnp.nan]), jnp.asarray([-5.0, -5.0, 0.0])
    desirable, weights = jnp.asarray([True, False, True]), jnp.asarray([1.0, 1.0, 0.0])
    found = mean(kto_sums(policy, reference, desirable, jnp.float32(0), weights, 0.5, 1.0, 2.0))
    np.testing.assert_allclose(found["loss"], (0.2689414 + 2 * 0.7310586) / 2, rtol=1e-6)
    assert (float(found["reward_desirable"]), float(found["reward_undesirable"])) == (1, 1)


def test_the_reference_point_of_kto_is_a_mean_that_is_not_negative_and_not_trained() -> None:
    policy, reference = jnp.asarray([1.0, 4.0, jnp.nan]), jnp.asarray([0.0, 2.0, 0.0])
    weights = jnp.asarray([1.0, 1.0, 0.0])
    assert float(kto_baseline(policy, reference, weights)) == 1.5
    assert float(kto_baseline(reference, policy, weights)) == 0
    assert float(kto_baseline(policy, reference, jnp.zeros(3))) == 0
    assert np.all(np.asarray(jax.grad(kto_baseline)(policy, reference, weights)) == 0)


def test_answers_are_sums_or_means_over_their_tokens_alone() -> None:
    """The chosen rows are longer than the rejected ones; a prompt on the left, pads on the right."""
    log_probs = Pair(jnp.asarray([[-9.0, -1.0, -2.0, -9.0]]), jnp.asarray([[-9.0, -4.0, -4.0]]))
    weights = Pair(jnp.asarray([[0, 1, 1, 0]]), jnp.asarray([[0, 1, 0]]))
    assert [x.tolist() for x in answers(log_probs, weights)] == [[-3], [-4]]
    assert [x.tolist() for x in answers(log_probs, weights, per_token=True)] == [[-1.5], [-4]]
