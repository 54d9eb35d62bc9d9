"""What counts, where a row ends, whitening by hand, and positions in parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import log_likelihood, masks
from hllm_jax.objectives.chunks import map_parts
from hllm_jax.objectives.log_likelihood import chunked_likelihood
from hllm_jax.objectives.masks import is_last, only, row_means, row_sums, weighted

# Compiled once each, not operation by operation.
at_last = jax.jit(masks.at_last)
whiten = jax.jit(masks.whiten, static_argnames=("shift_mean", "unbiased"))
likelihood = jax.jit(log_likelihood.likelihood, static_argnames="temperature")


def test_the_last_position_is_found_wherever_the_pads_are() -> None:
    weights = jnp.asarray([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    found = [np.flatnonzero(row).tolist() for row in np.asarray(is_last(weights))]
    assert found == [[1], [3], [3], [], [3]]
    scores = jnp.arange(20.0).reshape(5, 4)
    assert at_last(scores, weights).tolist() == [1, 7, 11, 0, 19]


def test_a_score_at_the_last_token_does_not_see_pads() -> None:
    """0, 3 or 7 pads on the left, some on the right, and whatever the head says of them."""
    scores = np.asarray([0.5, -1.0, 2.25], np.float32)
    for left in (0, 3, 7):
        row = np.full((1, 12), np.nan, np.float32)
        row[0, left : left + 3] = scores
        assert float(at_last(jnp.asarray(row), jnp.asarray(~np.isnan(row)))[0]) == 2.25


def test_what_has_no_weight_reaches_neither_sum_nor_gradient() -> None:
    x, weights = jnp.asarray([[1.0, jnp.nan], [3.0, jnp.inf]]), jnp.asarray([[1.0, 0.0], [0.5, 0.0]])
    assert [float(each) for each in weighted(x, weights)] == [2.5, 1.5]
    assert row_sums(x, weights).tolist() == [1.0, 1.5]
    assert row_means(x, weights).tolist() == [1.0, 3.0]
    gradient = jax.grad(lambda x: weighted(jnp.exp(only(x, weights)), weights)[0])(x)
    np.testing.assert_allclose(gradient, [[np.e, 0], [0.5 * np.exp(3), 0]], rtol=1e-6)


def test_whitening_by_hand() -> None:
    x, weights = jnp.asarray([[1.0, 2.0, 7.0], [9.0, 9.0, 3.0]]), jnp.asarray([[1, 1, 0], [0, 0, 1]])
    at = np.asarray(weights) == 1
    shifted = whiten(x, weights)
    np.testing.assert_allclose(shifted[at], [-1.2247449, 0, 1.2247449], atol=1e-6)
    np.testing.assert_allclose(whiten(x, weights, shift_mean=False)[at], [0.7752551, 2, 3.2247449], atol=1e-6)
    np.testing.assert_allclose(whiten(x, weights, unbiased=True)[at], [-1, 0, 1], atol=1e-6)
    assert np.all(np.asarray(shifted)[~at] == 0)


def test_whitening_of_equals_of_one_and_of_none_is_finite() -> None:
    equal = jnp.full((2, 3), 0.1)
    for weights in (jnp.ones((2, 3)), jnp.eye(2, 3) * jnp.asarray([[1.0], [0.0]]), jnp.zeros((2, 3))):
        assert np.abs(whiten(equal, weights, unbiased=True)).max() < 1e-3


def test_likelihood_by_hand() -> None:
    logits = jnp.asarray([[0.0, jnp.log(3.0)]])
    for temperature, p, entropy in ((1.0, 0.75, 0.5623351), (0.5, 0.9, 0.3250830)):
        found = likelihood(logits, jnp.asarray([1]), temperature=temperature)
        np.testing.assert_allclose(found.log_probs, [np.log(p)], rtol=1e-6)
        np.testing.assert_allclose(found.entropy, [entropy], rtol=1e-6)
    with pytest.raises(ValueError, match="temperature 0"):
        likelihood(logits, jnp.asarray([1]), temperature=0.0)


def test_likelihood_of_what_the_sampler_had_left() -> None:
    """A token that was ruled out is -inf: the others have the probabilities they were drawn with."""

    def of(logits: jax.Array) -> jax.Array:
        found = likelihood(logits, jnp.asarray([1]))
        return jnp.sum(found.log_probs + found.entropy)

    ruled_out = jnp.asarray([[0.0, jnp.log(3.0), -jnp.inf]])
    np.testing.assert_allclose(of(ruled_out), np.log(0.75) + 0.5623351, rtol=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.grad(of))(ruled_out)))


def test_the_gradient_of_the_likelihood_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(0.0, 3.0, (2, 5, 13)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 13, (2, 5)))
    cost = jnp.asarray(rng.normal(size=(2, 2, 5)), jnp.float32)

    def ours(logits: jax.Array) -> jax.Array:
        found = likelihood(logits, targets, temperature=0.7)
        return jnp.sum(cost[0] * found.log_probs + cost[1] * found.entropy)

    def defined(logits: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits / 0.7)
        taken = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(cost[0] * taken - cost[1] * jnp.sum(jnp.exp(log_p) * log_p, axis=-1))

    for found, expected in zip(
        jax.value_and_grad(ours)(logits), jax.value_and_grad(defined)(logits), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_likelihood_over_a_large_vocabulary_is_exact() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(30.0, 4.0, (16, 49_152)).astype(np.float32)
    targets = rng.integers(0, 49_152, 16)
    targets[:8] = logits[:8].argmax(axis=1)

    def both(logits: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        found = likelihood(logits, jnp.asarray(targets))
        return jnp.sum(found.log_probs + found.entropy), (found.log_probs, found.entropy)

    (_, found), _ = jax.jit(jax.value_and_grad(both, has_aux=True))(jnp.asarray(logits))
    centred = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(
        found[0], np.take_along_axis(log_p, targets[:, None], 1)[:, 0], rtol=1e-6, atol=3e-6
    )
    np.testing.assert_allclose(found[1], -(np.exp(log_p) * log_p).sum(axis=1), rtol=0, atol=3e-5)


def test_likelihood_in_parts_is_the_same_with_its_gradient() -> None:
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 6, 4), (4, 11)))
    targets = jnp.asarray(rng.integers(0, 11, (2, 6)))
    cost = jnp.asarray(rng.normal(size=(2, 2, 6)), jnp.float32)

    def of(w: jax.Array, chunks: int) -> tuple[jax.Array, jax.Array]:
        found = chunked_likelihood(x, lambda part: part @ w, targets, 0.7, chunks)
        return jnp.sum(cost[0] * found.log_probs + cost[1] * found.entropy), found.log_probs

    whole, parts = (jax.jit(jax.value_and_grad(of, has_aux=True), static_argnums=1)(w, n) for n in (1, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)
    with pytest.raises(ValueError, match="rows of 6 do not divide into 4"):
        map_parts(lambda part: part, (x,), 4)
