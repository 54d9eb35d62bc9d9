"""Plain attention against the formula in NumPy float64, and the choice of kernels."""

from __future__ import annotations

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn.attention import Dropout, attention, cached_attention, recalling_attention

B, L, H, K, h = 2, 9, 4, 2, 6


def draw(length: int = L, keys: int = L) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(length + keys)
    shapes = ((B, length, H, h), (B, keys, K, h), (B, keys, K, h))
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return q, k, v


def formula(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray,
    softcap: float | None = None,
    scale: float = 1 / math.sqrt(h),
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """softmax(q kᵀ · scale + bias) v, one head after another; a query that sees nothing gives zeros."""
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for head in range(H):
            keys, values = k[b, :, head // (H // K)].astype(float), v[b, :, head // (H // K)].astype(float)
            scores = q[b, :, head].astype(float) @ keys.T * scale
            if bias is not None:
                scores = scores + bias[b % len(bias), head]
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


def test_what_a_query_sees_where_attention_is_not_causal() -> None:
    """Both ways within a document; the decoder's segment i sees the encoder's segment i."""
    q, k, v = (jnp.asarray(x) for x in draw())
    same = (PACKED[:, :, None] == PACKED[:, None, :]) & (PACKED != 0)[:, :, None]
    out = attention(q, k, v, causal=False, segment_ids=jnp.asarray(PACKED), kernel="plain")
    expected = formula(*(np.asarray(x) for x in (q, k, v)), same)
    np.testing.assert_allclose(np.asarray(out)[PACKED != 0], expected[PACKED != 0], atol=2e-6)

    q, k, v = (jnp.asarray(x) for x in draw(length=4, keys=7))
    ours = np.asarray([[1, 1, 2, 0], [3, 1, 1, 1]], np.int32)
    theirs = np.asarray([[1, 2, 2, 2, 1, 0, 0], [1, 1, 1, 3, 3, 3, 3]], np.int32)
    looked = attention(
        q, k, v, causal=False, segment_ids=jnp.asarray(ours), key_segment_ids=jnp.asarray(theirs)
    )
    mask = (ours[:, :, None] == theirs[:, None, :]) & (ours != 0)[:, :, None]
    expected = formula(*(np.asarray(x) for x in (q, k, v)), mask)
    np.testing.assert_allclose(np.asarray(looked)[ours != 0], expected[ours != 0], atol=2e-6)


def test_tokens_recall_a_row_that_is_padded() -> None:
    q, k, v = draw(length=4, keys=7)
    there = np.asarray([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]], np.int32)
    keys, values = jnp.asarray(k).transpose(0, 2, 3, 1), jnp.asarray(v).swapaxes(1, 2)
    out = recalling_attention(jnp.asarray(q), keys, values, jnp.asarray(there))
    mask = np.broadcast_to(there[:, None, :] != 0, (2, 4, 7))
    np.testing.assert_allclose(out, formula(q, k, v, mask), atol=2e-6)
    everything = recalling_attention(jnp.asarray(q), keys, values)
    np.testing.assert_allclose(everything, formula(q, k, v, np.ones_like(mask)), atol=2e-6)


def test_another_row_of_the_same_length_keeps_its_own_documents() -> None:
    q, k, v = draw()
    theirs = np.asarray([[2, 2, 2, 1, 1, 1, 1, 1, 0], [0, 5, 5, 5, 5, 0, 0, 0, 0]], np.int32)
    out = attention(
        *map(jnp.asarray, (q, k, v)),
        causal=False,
        segment_ids=jnp.asarray(PACKED),
        key_segment_ids=jnp.asarray(theirs),
    )
    mask = (PACKED[:, :, None] == theirs[:, None, :]) & (PACKED != 0)[:, :, None]
    np.testing.assert_allclose(np.asarray(out)[PACKED != 0], formula(q, k, v, mask)[PACKED != 0], atol=2e-6)


def test_a_prefix_is_seen_by_every_query_of_its_document() -> None:
    q, k, v = draw()
    prefix = np.asarray([[1, 1, 0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0]], np.int32)
    far = np.arange(L)[:, None] - np.arange(L)[None, :]
    mask = ((far >= 0)[None] | (prefix != 0)[:, None, :]) & causal_documents(PACKED)
    out = attention(*map(jnp.asarray, (q, k, v)), segment_ids=jnp.asarray(PACKED), prefix=jnp.asarray(prefix))
    expected = formula(q, k, v, mask)
    np.testing.assert_allclose(np.asarray(out)[PACKED != 0], expected[PACKED != 0], atol=2e-6)

    # The same through a cache that holds nothing before the prefix.
    keys, values = jnp.asarray(k).transpose(0, 2, 3, 1), jnp.asarray(v).swapaxes(1, 2)
    slots = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None], (B, L))
    whole = attention(*map(jnp.asarray, (q, k, v)), prefix=jnp.asarray(prefix))
    cached = cached_attention(jnp.asarray(q), keys, values, slots, prefix=jnp.asarray(prefix))
    np.testing.assert_allclose(cached, whole, atol=2e-6)


def causal_documents(segments: np.ndarray) -> np.ndarray:
    """Query and key lie in one document: bool [B, L, L]."""
    return (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, :, None]


def test_scale_and_bias_of_the_scores() -> None:
    q, k, v = draw()
    bias = np.random.default_rng(3).normal(size=(1, H, L, L)).astype(np.float32)
    out = attention(*map(jnp.asarray, (q, k, v)), scale=0.7, bias=jnp.asarray(bias))
    np.testing.assert_allclose(out, formula(q, k, v, causal(ONE), scale=0.7, bias=bias), atol=2e-6)


def test_dropout_zeroes_probabilities_and_keeps_their_mean() -> None:
    q, k = jnp.zeros((1, 400, 1, 2)), jnp.zeros((1, 400, 1, 2))
    v = jnp.ones((1, 400, 1, 2))
    drop = Dropout(0.25, jax.random.key(0))
    out = np.asarray(attention(q, k, v, causal=False, dropout=drop))[0, :, 0, 0]
    # Each output is the mean of 400 draws of 0 or 4/3: standard deviation √(0.25 / 0.75 / 400).
    assert out.mean() == pytest.approx(1.0, abs=0.005)
    assert out.std() == pytest.approx(math.sqrt(1 / 3 / 400), rel=0.2)


def test_what_contradicts_itself_is_refused() -> None:
    q, k, v = map(jnp.asarray, draw())
    with pytest.raises(ValueError, match="causal is False"):
        attention(q, k, v, causal=False, window=3)
    with pytest.raises(ValueError, match="key_segment_ids need segment_ids"):
        attention(q, k, v, causal=False, key_segment_ids=jnp.asarray(ONE))
    for given, said in (
        ({"prefix": jnp.asarray(ONE)}, "prefix"),
        ({"bias": jnp.zeros((1, H, L, L))}, "bias"),
    ):
        with pytest.raises(ValueError, match=f"'blocked' cannot do this: the blocked kernel has no {said}"):
            attention(q, k, v, kernel="blocked", **given)


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
