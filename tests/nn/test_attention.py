"""Plain attention against the formula in NumPy float64, and the choice of kernels."""

from __future__ import annotations

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn.attention import attention, cached_attention

B, L, H, K, h = 2, 9, 4, 2, 6


def draw(length: int = L, keys: int = L) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(length + keys)
    shapes = ((B, length, H, h), (B, keys, K, h), (B, keys, K, h))
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return q, k, v


def formula(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, softcap: float | None = None
) -> np.ndarray:
    """softmax(q kᵀ / √h) v, one head after another; a query that sees nothing gives zeros."""
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for head in range(H):
            keys, values = k[b, :, head // (H // K)].astype(float), v[b, :, head // (H // K)].astype(float)
            scores = q[b, :, head].astype(float) @ keys.T / math.sqrt(h)
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.where(mask[b], np.exp(scores), 0.0)
            out[b, :, head] = weights @ values / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return out


def causal(segments: np.ndarray, window: int | None = None) -> np.ndarray:
    far = np.arange(L)[:, None] - np.arange(L)[None, :]
    near = (far >= 0) & (far < (window or L))
    return near & (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, :, None]


ONE = np.ones((B, L), np.int32)
PACKED = np.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0], [0, 0, 5, 5, 5, 5, 5, 5, 5]], np.int32)


@pytest.mark.parametrize("window", [None, 1, 3, 99])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("packed", [False, True])
def test_plain_is_the_formula(window: int | None, softcap: float | None, packed: bool) -> None:
    q, k, v = draw()
    segments = PACKED if packed else ONE
    with jax.numpy_dtype_promotion("strict"):
        out = attention(
            jnp.asarray(q),
            jnp.asarray(k),
            jnp.asarray(v),
            segment_ids=jnp.asarray(segments) if packed else None,
            window=window,
            softcap=softcap,
            kernel="plain",
        )
    expected = formula(q, k, v, causal(segments, window), softcap)
    np.testing.assert_allclose(np.asarray(out)[segments != 0], expected[segments != 0], atol=2e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("window", [None, 2])
def test_queries_of_a_cache_see_the_slots_up_to_their_own(window: int | None) -> None:
    q, k, v = draw(length=3, keys=7)
    slots = np.asarray([[2, 3, -1], [-1, 0, 1]], np.int32)
    far = slots[:, :, None] - np.arange(7)[None, None]
    mask = (far >= 0) & (far < (window or 7))
    keys, values = jnp.asarray(k).transpose(0, 2, 3, 1), jnp.asarray(v).swapaxes(1, 2)
    out = cached_attention(jnp.asarray(q), keys, values, jnp.asarray(slots), window=window)
    np.testing.assert_allclose(np.asarray(out)[slots >= 0], formula(q, k, v, mask)[slots >= 0], atol=2e-6)
    assert np.isfinite(out).all()


def test_softmax_is_float32_whatever_the_inputs_are() -> None:
    """With 600 equal keys, bfloat16 sums would stop growing at 256."""
    q, k = jnp.zeros((1, 600, 1, 2), jnp.bfloat16), jnp.zeros((1, 600, 1, 2), jnp.bfloat16)
    v = jnp.ones((1, 600, 1, 2), jnp.bfloat16)
    out = attention(q, k, v, kernel="plain")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0, atol=0.01)


def test_a_kernel_asked_for_by_name_does_it_or_says_why_not() -> None:
    q, k, v = draw()
    says = r"'cudnn' cannot do this: cuDNN needs an NVIDIA GPU.*; use 'auto' or 'plain'"
    with pytest.raises(ValueError, match=says):
        attention(q, k, v, kernel="cudnn")


def test_auto_takes_the_blocked_kernel_on_cpu(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v = draw()
    chosen = jax.make_jaxpr(lambda q, k, v: attention(q, k, v))(q, k, v)
    named = jax.make_jaxpr(lambda q, k, v: attention(q, k, v, kernel="blocked"))(q, k, v)
    assert str(chosen) == str(named)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v = draw()
    with pytest.raises(ValueError, match="H a multiple of K"):
        attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match="do not fit"):
        attention(q, k[:, :7], v)
    with pytest.raises(ValueError, match="9 queries and 7 keys: causal attention is within one row"):
        attention(q, k[:, :7], v[:, :7])
