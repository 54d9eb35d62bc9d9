"""The loss against arithmetic by hand, and what must not change it."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from hllm_jax.models.config import Execution
from hllm_jax.models.layout import init_variables
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.objectives import add, causal_lm, cross_entropy, mean
from hllm_jax.testing.models import tiny_config, tiny_model
from hllm_jax.testing.training import Bigram, ToyBatches


class Fixed(nn.Module):
    """Gives the same logits whatever comes."""

    logits: tuple[Any, ...]

    def __call__(self, tokens: jax.Array, **ignored: Any) -> tuple[jax.Array, None]:
        return jnp.asarray(self.logits, jnp.float32), None


def batch(targets: Any, weights: Any, tokens: Any = None) -> dict[str, jax.Array]:
    targets = jnp.asarray(targets, jnp.int32)
    ones = jnp.ones_like(targets)
    return {
        "tokens": ones if tokens is None else jnp.asarray(tokens, jnp.int32),
        "targets": targets,
        "weights": jnp.asarray(weights, jnp.float32),
        "segment_ids": ones,
        "positions": ones,
    }


def test_loss_by_hand() -> None:
    """softmax(0, ln 3) = (1/4, 3/4): the targets 1, 0, 0 cost ln 4/3, ln 4, ln 4; weights 1, 1/2, 0.

    loss = (ln 4/3 + 1/2 · ln 4) / (3/2) = (0.2877 + 0.6931) / 1.5 = 0.6539
    """
    row = ((0.0, math.log(3)),) * 3
    sums = causal_lm(Fixed(((row),)))({}, batch([[1, 0, 0]], [[1, 0.5, 0]]), None)
    means = mean(sums)
    assert float(means["loss"]) == pytest.approx((math.log(4 / 3) + 0.5 * math.log(4)) / 1.5, abs=1e-7)
    assert float(means["accuracy"]) == pytest.approx(1 / 1.5)


def test_z_loss_by_hand() -> None:
    """log Z = ln 4 at every position: the mean of its square is (ln 4)²."""
    row = ((0.0, math.log(3)),) * 2
    sums = mean(causal_lm(Fixed((row,)), z_loss=0.1)({}, batch([[1, 1]], [[1, 1]]), None))
    assert float(sums["nll"]) == pytest.approx(math.log(4 / 3), abs=1e-7)
    assert float(sums["loss"]) == pytest.approx(math.log(4 / 3) + 0.1 * math.log(4) ** 2, abs=1e-7)


def test_written_gradient_is_the_derivative() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 3, 11)) * 3, jnp.float32)
    targets = jnp.asarray(rng.integers(0, 11, (2, 3)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)

    def ours(logits: jax.Array) -> jax.Array:
        nll, log_z = cross_entropy(logits, targets)
        return jnp.sum(weights * (nll + 0.3 * jnp.square(log_z)))

    def plain(logits: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits)
        nll = -jnp.sum(log_probs * jax.nn.one_hot(targets, 11), axis=-1)
        return jnp.sum(weights * (nll + 0.3 * jnp.square(jax.nn.logsumexp(logits, axis=-1))))

    np.testing.assert_allclose(ours(logits), plain(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(plain)(logits), atol=2e-6)


def test_large_logits_stay_finite() -> None:
    nll, _ = cross_entropy(jnp.asarray([[1e4, -1e4]], jnp.float32), jnp.asarray([1], jnp.int32))
    assert float(nll[0]) == 2e4


def test_target_of_weight_zero_never_matters() -> None:
    model = Bigram()
    variables = nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    rows = ToyBatches()[0]
    changed = {**rows, "targets": np.where(rows["weights"] == 0, 5, rows["targets"])}
    loss = causal_lm(model)
    first, second = (loss(variables, jax.tree.map(jnp.asarray, each), None) for each in (rows, changed))
    assert float(first["loss"][0]) == float(second["loss"][0])


def test_end_of_text_is_learned_and_pad_may_be_the_same_id() -> None:
    """An id is padding only where its weight is 0 (in the book, eos had loss 0 everywhere)."""
    eos, other = 2, 9
    logits = ((0.0,) * 12,) * 4
    loss = causal_lm(Fixed((logits,)))
    alike = loss({}, batch([[5, 6, eos, eos]], [[1, 1, 1, 0]]), None)
    apart = loss({}, batch([[5, 6, eos, other]], [[1, 1, 1, 0]]), None)
    assert float(alike["loss"][0]) == float(apart["loss"][0]) == pytest.approx(3 * math.log(12), rel=1e-6)
    assert float(alike["loss"][1]) == 3


def test_packing_adds_up() -> None:
    """loss(pack(a, b)) = loss(a) + loss(b), numerators and denominators."""
    model, params = tiny_model(tiny_config(layers=1), attention="plain")
    variables = {"params": params}
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 67, n).astype(np.int32) for n in (6, 9))
    loss = jax.jit(causal_lm(model))

    def row(*documents: np.ndarray) -> dict[str, jax.Array]:
        parts = [
            (d[:-1], d[1:], np.full(len(d) - 1, i + 1), np.arange(len(d) - 1))
            for i, d in enumerate(documents)
        ]
        fields = [np.concatenate(column)[None].astype(np.int32) for column in zip(*parts, strict=True)]
        padding = ((0, 0), (0, 16 - fields[0].shape[1]))
        tokens, targets, segments, positions = (jnp.asarray(np.pad(field, padding)) for field in fields)
        return {
            "tokens": tokens,
            "targets": targets,
            "weights": (segments > 0).astype(jnp.float32),
            "segment_ids": segments,
            "positions": positions,
        }

    apart = add(loss(variables, row(a), None), loss(variables, row(b), None))
    together = loss(variables, row(a, b), None)
    assert float(together["loss"][1]) == float(apart["loss"][1]) == 13
    np.testing.assert_allclose(together["loss"][0], apart["loss"][0], rtol=1e-6)


def test_batch_without_a_trained_token_has_loss_zero_and_finite_gradients() -> None:
    model, params = tiny_model(tiny_config(layers=1), attention="plain")
    rows = {name: jnp.zeros((2, 8), jnp.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    rows["weights"] = jnp.zeros((2, 8), jnp.float32)

    def value(params: Any) -> jax.Array:
        return mean(causal_lm(model)({"params": params}, rows, None))["loss"]

    loss, gradients = jax.jit(jax.value_and_grad(value))(params)
    assert float(loss) == 0
    assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(gradients))


def test_objective_passes_strict_promotion() -> None:
    model = Bigram()
    variables = nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    rows = jax.tree.map(jnp.asarray, ToyBatches()[0])
    with jax.numpy_dtype_promotion("strict"):
        sums = causal_lm(model, z_loss=1e-4)(variables, rows, jax.random.key(0))
        means = mean(sums)
    assert {str(x.dtype) for x in jax.tree.leaves((sums, means))} == {"float32"}


def test_mean_of_nothing_is_zero() -> None:
    zero = jnp.zeros(())
    assert float(mean({"x": (zero, zero)})["x"]) == 0
    assert float(mean({"x": (jnp.asarray(3.0), jnp.asarray(0.25))})["x"]) == 12


@pytest.mark.parametrize("tied", [True, False])
def test_logits_in_parts_are_the_same_loss_and_gradient(tied: bool) -> None:
    spec = DecoderConfig(
        vocab_size=48,
        embed=16,
        layers=1,
        heads=2,
        kv_heads=1,
        mlp=32,
        max_length=24,
        tie_embeddings=tied,
        logit_softcap=20.0,
    )
    model = spec.build(Execution(dtype="float32"))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 48, (3, 24)).astype(np.int32)
    rows = {
        "tokens": jnp.asarray(tokens),
        "targets": jnp.asarray((tokens * 5 + 1) % 48),
        "weights": jnp.asarray(rng.integers(0, 2, tokens.shape).astype(np.float32)),
        "segment_ids": jnp.ones(tokens.shape, jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(24, dtype=jnp.int32), tokens.shape),
    }
    variables = meta.unbox(init_variables(model, jax.random.key(0)))

    def value(chunks: int) -> Any:
        def numerator(variables: Any) -> Any:
            sums = causal_lm(model, 1e-3, chunks)(variables, rows, None)
            return sums["loss"][0], sums

        return jax.jit(jax.value_and_grad(numerator, has_aux=True))(variables)

    (_, whole), gradient = value(1)
    for chunks in (2, 8):
        (_, parts), of_parts = value(chunks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), parts, whole)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), of_parts, gradient)
    with pytest.raises(ValueError, match="24 do not divide into 5"):
        value(5)


def test_logits_in_parts_are_never_whole() -> None:
    spec = DecoderConfig(vocab_size=4096, embed=8, layers=1, heads=2, kv_heads=2, mlp=8, max_length=64)
    model = spec.build(Execution(dtype="float32"))
    tokens = jnp.zeros((2, 64), jnp.int32)
    rows = {"tokens": tokens, "targets": tokens, "weights": tokens.astype(jnp.float32)}
    rows |= {"segment_ids": tokens + 1, "positions": tokens}
    variables = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
    text = {
        chunks: jax.jit(jax.grad(lambda v, c=chunks: causal_lm(model, 0.0, c)(v, rows, None)["loss"][0]))
        .lower(meta.unbox(variables))
        .as_text()
        for chunks in (1, 8)
    }
    assert "2x64x4096xf32" in text[1]
    assert "2x64x4096xf32" not in text[8]
    assert "2x8x4096xf32" in text[8]
