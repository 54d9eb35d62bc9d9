"""Divergences by hand, and a student that learns what the divergence says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import distillation, mean
from hllm_jax.objectives.distillation import chunked_distillation

# Compiled once each, not operation by operation.
divergence = jax.jit(distillation.divergence, static_argnames=("kind", "mixture"))
distillation_sums = jax.jit(
    distillation.distillation_sums, static_argnames=("kind", "temperature", "hard", "mixture")
)
TEACHER, STUDENT = np.log(np.asarray([[0.75, 0.25], [0.5, 0.5]], np.float32))


@pytest.mark.parametrize(
    ("kind", "by_hand"), [("forward_kl", 0.1308120), ("reverse_kl", 0.1438410), ("jsd", 0.0338221)]
)
def test_divergences_by_hand(kind: Any, by_hand: float) -> None:
    np.testing.assert_allclose(divergence(STUDENT + 2, TEACHER - 1, kind=kind), by_hand, rtol=1e-5)
    assert float(divergence(TEACHER, TEACHER, kind=kind)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_ids_that_neither_can_have_change_nothing(kind: Any) -> None:
    """A vocabulary that is padded with -inf."""
    of = jax.value_and_grad(lambda s, t: jnp.sum(divergence(s, t, kind=kind)))
    value, gradient = of(STUDENT, TEACHER)
    padded = of(*(np.append(x, np.float32(-np.inf)) for x in (STUDENT, TEACHER)))
    np.testing.assert_allclose(padded[0], value, rtol=1e-6)
    np.testing.assert_allclose(padded[1], np.append(gradient, 0), atol=1e-7)


def test_the_loss_by_hand() -> None:
    """T = 2: the teacher is (√3, 1)/(√3 + 1) there. The text says token 0, whose nll is ln 2."""
    p = np.sqrt(3) / (np.sqrt(3) + 1)
    kl = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    student, teacher = (np.stack([x, np.full(2, np.nan)])[None] for x in (STUDENT, TEACHER))
    targets, weights = np.asarray([[0, 1]]), np.asarray([[1.0, 0.0]])
    found = mean(distillation_sums(student, teacher, targets, weights, temperature=2.0, hard=0.25))
    np.testing.assert_allclose(found["divergence"], kl, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], 0.75 * 4 * kl + 0.25 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose([found["nll"], found["agreement"]], [np.log(2), 1], rtol=1e-6)


def test_the_gradient_is_that_of_soft_targets_and_keeps_its_size_with_temperature() -> None:
    """T·(softmax(s/T) - softmax(t/T)) at weight 1, with T² against the two divisions by T."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 1, 1, 9)).astype(np.float32)
    targets, weights = np.zeros((1, 1), int), np.ones((1, 1))
    for temperature in (1.0, 4.0):

        def loss(student: jax.Array, temperature: float = temperature) -> jax.Array:
            sums = distillation_sums(student, teacher, targets, weights, temperature=temperature)
            return sums["loss"][0]

        s, t = (jax.nn.softmax(x / temperature) for x in (student, teacher))
        np.testing.assert_allclose(jax.grad(loss)(student), temperature * (s - t), atol=1e-6)


def test_no_gradient_goes_to_the_teacher() -> None:
    def loss(teacher: jax.Array) -> jax.Array:
        return jnp.sum(divergence(STUDENT, teacher, kind="jsd"))

    assert np.all(np.asarray(jax.grad(loss)(jnp.asarray(TEACHER))) == 0)


def test_in_parts_it_is_the_same_with_its_gradient() -> None:
    rng = np.random.default_rng(1)
    x, y, w, v = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 6, 4), (2, 6, 8), (4, 11), (8, 11))
    )
    targets = jnp.asarray(rng.integers(0, 11, (2, 6)))
    weights = jnp.asarray(rng.integers(0, 2, (2, 6)), jnp.float32)

    def of(w: jax.Array, chunks: int) -> Any:
        sums = chunked_distillation(
            (x, lambda part: part @ w), (y, lambda part: part @ v), targets, weights, chunks, "jsd", 2.0, 0.5
        )
        return sums["loss"][0], sums

    whole, parts = (jax.jit(jax.value_and_grad(of, has_aux=True), static_argnums=1)(w, n) for n in (1, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)


def test_what_is_refused() -> None:
    row, unknown = jnp.zeros((1, 2)), "js"
    kind: Any = unknown
    with pytest.raises(ValueError, match="choose one of forward_kl, reverse_kl, jsd"):
        divergence(row, row, kind=kind)
    with pytest.raises(ValueError, match="between 0 and 1"):
        divergence(row, row, kind="jsd", mixture=1.0)
    with pytest.raises(ValueError, match="one tokenizer"):
        distillation_sums(row, jnp.zeros((1, 3)), jnp.zeros(1, int), jnp.ones(1))
    with pytest.raises(ValueError, match="larger than 0"):
        distillation_sums(row, row, jnp.zeros(1, int), jnp.ones(1), temperature=0.0)
