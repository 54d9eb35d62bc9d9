"""KL estimators against the closed form: every token is enumerated, so nothing is left to chance."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import kl as written
from hllm_jax.objectives.kl import Estimator, adaptive_kl, fixed_kl

# Compiled once each, not operation by operation.
kl_divergence = jax.jit(written.kl_divergence)
kl_estimate = jax.jit(written.kl_estimate, static_argnames="estimator")

ESTIMATORS = get_args(Estimator)
rng = np.random.default_rng(0)
P, Q = (jnp.asarray(rng.normal(size=7) * 1.5, jnp.float32) for _ in range(2))


@partial(jax.jit, static_argnums=0)
def expected(estimator: Any, logits: jax.Array) -> jax.Array:
    """The mean of an estimate over all tokens, each as often as the sampler draws it."""
    of_tokens = kl_estimate(jax.nn.log_softmax(logits), jax.nn.log_softmax(Q), estimator=estimator)
    return jnp.sum(jax.nn.softmax(P) * of_tokens)


def test_by_hand() -> None:
    p, q = jnp.log(jnp.asarray([0.75, 0.25])), jnp.log(jnp.asarray([0.5, 0.5]))
    np.testing.assert_allclose(kl_divergence(p + 3, q - 2), 0.1308120, rtol=1e-5)
    by_hand = {
        "k1": [0.4054651, -0.6931472],
        "k2": [0.0822010, 0.2402265],
        "k3": [0.0721318, 0.3068528],
    }
    for name in ESTIMATORS:
        np.testing.assert_allclose(kl_estimate(p, q, estimator=name), by_hand[name], rtol=1e-5)


def test_means_are_the_closed_form() -> None:
    p, q = (np.exp(x - np.log(np.exp(x).sum())) for x in np.asarray((P, Q), np.float64))
    closed = np.sum(p * np.log(p / q))
    np.testing.assert_allclose(kl_divergence(P, Q), closed, rtol=1e-5)
    np.testing.assert_allclose(expected("k1", P), closed, rtol=1e-5)
    np.testing.assert_allclose(expected("k3", P), closed, rtol=1e-5)
    np.testing.assert_allclose(expected("k2", P), np.sum(p * np.log(p / q) ** 2) / 2, rtol=1e-5)


def test_gradients_as_losses_are_those_the_docstring_names() -> None:
    reverse, forward = jax.grad(kl_divergence)(P, Q), jax.grad(lambda p: kl_divergence(Q, p))(P)
    gradients = {name: jax.grad(expected, argnums=1)(name, P) for name in ESTIMATORS}
    np.testing.assert_allclose(gradients["k1"], np.zeros(7), atol=1e-6)
    np.testing.assert_allclose(gradients["k2"], reverse, atol=1e-6)
    np.testing.assert_allclose(gradients["k3"], forward, atol=1e-6)
    assert np.abs(reverse).max() > 0.05
    assert np.abs(reverse - forward).max() > 0.05


def test_nothing_lies_between_a_distribution_and_itself() -> None:
    log_p = jax.nn.log_softmax(P)
    assert float(kl_divergence(P, P)) == 0
    assert [np.abs(kl_estimate(log_p, log_p, estimator=name)).max() for name in ESTIMATORS] == [0, 0, 0]


def test_k2_and_k3_are_never_negative() -> None:
    near = np.concatenate([np.geomspace(1e-12, 20, 4000), -np.geomspace(1e-12, 60, 4000)])
    log_ratio = jnp.asarray(near, jnp.float32)
    for name in ("k2", "k3"):
        found = np.asarray(kl_estimate(jnp.zeros_like(log_ratio), log_ratio, estimator=name))
        assert found.min() >= 0, name
        assert np.all(np.isfinite(found)), name


def test_tokens_that_cannot_be_are_left_out() -> None:
    p = jnp.asarray([0.0, jnp.log(3.0), -jnp.inf])
    np.testing.assert_allclose(kl_divergence(p, jnp.zeros(3)), np.log(3) - 0.5623351, rtol=1e-5)
    assert float(kl_divergence(jnp.zeros(3), p)) == np.inf
    assert np.all(np.isfinite(jax.grad(kl_divergence, argnums=(0, 1))(p, jnp.zeros(3))))


@pytest.mark.parametrize(("kl", "becomes"), [(6.6, 0.202), (60.0, 0.204), (3.0, 0.196), (6.0, 0.2)])
def test_the_adaptive_controller_by_hand(kl: float, becomes: float) -> None:
    found = jax.jit(adaptive_kl(6.0))(jnp.float32(0.2), jnp.float32(kl))
    np.testing.assert_allclose(found, becomes, rtol=1e-6)


def test_the_fixed_controller_and_what_is_refused() -> None:
    assert float(fixed_kl()(jnp.float32(0.02), jnp.float32(100.0))) == np.float32(0.02)
    with pytest.raises(ValueError, match="larger than 0 nats"):
        adaptive_kl(0.0)
    unknown: Any = "k4"
    with pytest.raises(ValueError, match="choose one of k1, k2, k3"):
        kl_estimate(P, Q, estimator=unknown)
