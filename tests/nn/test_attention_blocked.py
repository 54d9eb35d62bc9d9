"""The blocked attention kernel against the formula, outputs and gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn.attention import attention
from hllm_jax.nn.attention_blocked import blocked_attention

LENGTHS = (1, 7, 63, 65, 129, 192)


def draw(
    length: int, batch: int = 2, heads: int = 4, kv_heads: int = 2, head_dim: int = 8, seed: int = 0
) -> Any:
    """q, k, v and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def packed(length: int, batch: int = 2) -> jax.Array:
    """Documents of uneven length and padding at the end, another cut in each row."""
    ids = np.ones((batch, length), np.int32)
    for row in range(batch):
        ids[row, length // 3 + row :] = 2
        ids[row, length // 2 + row :] = 3
        ids[row, length - length // 8 :] = 0
    return jnp.asarray(ids)


def formula(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> jax.Array:
    """softmax(q kᵀ · scale) v with keys repeated for their group, nothing clever."""
    B, L, H, h = q.shape
    k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BLHh,BSHh->BHLS", q, k) * (1 / math.sqrt(h) if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    ids = np.ones((B, L), np.int32) if segment_ids is None else np.asarray(segment_ids)
    far = np.arange(L)[:, None] - np.arange(L)[None, :]
    mask = ((far >= 0) | (not causal)) & (far < (window or L)) & (ids[:, :, None] == ids[:, None, :])
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("BHLS,BSHh->BLHh", weights, v)


def assert_same(arrays: Any, rows: int | None = None, **case: Any) -> None:
    """Output and the three gradients agree to 1e-5."""

    def with_gradients(attend: Callable[..., jax.Array]) -> Any:
        def scalar(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array) -> Any:
            out = attend(q, k, v, **case)
            return jnp.sum(out * cotangent), out

        (_, out), gradients = jax.jit(jax.value_and_grad(scalar, (0, 1, 2), has_aux=True))(*arrays)
        return out, *gradients

    ours, theirs = with_gradients(functools.partial(blocked_attention, rows=rows)), with_gradients(formula)
    for mine, right, name in zip(ours, theirs, ("out", "q", "k", "v"), strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("length", LENGTHS)
def test_causal(length: int) -> None:
    assert_same(draw(length), rows=64)


@pytest.mark.parametrize("length", LENGTHS)
def test_segments_and_padding(length: int) -> None:
    assert_same(draw(length, seed=1), rows=64, segment_ids=packed(length))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (4, 1)])
def test_groups(heads: int, kv_heads: int) -> None:
    assert_same(draw(65, heads=heads, kv_heads=kv_heads), rows=64)


@pytest.mark.parametrize("window", [1, 33, 63, 64, 500])
def test_window(window: int) -> None:
    assert_same(draw(129, seed=2), rows=64, segment_ids=packed(129), window=window)


def test_soft_cap() -> None:
    assert_same(draw(65, seed=3), rows=32, softcap=0.7, window=40)


@pytest.mark.parametrize("length", [7, 65, 129])
def test_not_causal(length: int) -> None:
    assert_same(draw(length, seed=4), rows=64, segment_ids=packed(length), causal=False)


def test_scale_of_the_scores() -> None:
    assert_same(draw(65, seed=5), rows=32, scale=1.0)


def test_default_blocks() -> None:
    assert_same(draw(300, batch=1, heads=2, kv_heads=1))


def test_rows_of_a_large_batch_are_done_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hllm_jax.nn.attention_blocked.SCORES", 1)
    assert_same(draw(65, batch=3), rows=32, segment_ids=packed(65, batch=3))


def test_a_later_token_changes_no_bit_before_it() -> None:
    q, k, v, _ = draw(200)
    moved = [x.at[:, 150].add(1.0) for x in (q, k, v)]
    attend = jax.jit(blocked_attention)
    before, after = attend(q, k, v), attend(*moved)
    np.testing.assert_array_equal(before[:, :150], after[:, :150])
    assert (np.asarray(before[:, 150]) != np.asarray(after[:, 150])).any()


def test_another_document_changes_no_bit() -> None:
    q, k, v, _ = draw(200)
    ids = jnp.asarray(np.repeat([[1, 2]], 100, axis=1).repeat(2, axis=0))
    moved = [x.at[:, :100].add(1.0) for x in (q, k, v)]
    attend = jax.jit(blocked_attention)
    before = attend(q, k, v, segment_ids=ids)
    after = attend(*moved, segment_ids=ids)
    np.testing.assert_array_equal(before[:, 100:], after[:, 100:])


def test_half_precision_sums_in_float32() -> None:
    q, k, v, _ = (x.astype(jnp.bfloat16) for x in draw(129))
    out = jax.jit(blocked_attention)(q, k, v)
    assert out.dtype == jnp.bfloat16
    right = formula(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out.astype(jnp.float32), right, atol=0.03)


def test_chosen_by_name() -> None:
    q, k, v, _ = draw(40)
    ids = packed(40)
    attend = jax.jit(attention, static_argnames=("softcap", "kernel"))
    named = attend(q, k, v, segment_ids=ids, softcap=3.0, kernel="blocked")
    plain = attend(q, k, v, segment_ids=ids, softcap=3.0, kernel="plain")
    token = np.asarray(ids) != 0
    np.testing.assert_allclose(np.asarray(named)[token], np.asarray(plain)[token], atol=1e-5)
    assert np.isfinite(named).all()
