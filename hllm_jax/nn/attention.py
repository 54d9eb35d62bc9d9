"""One name for attention, several kernels behind it.

`attention` is for whole rows, and every kernel is tested against its `plain` one. A kernel that is asked for
by name and cannot do the case raises; `auto` takes the fastest that can, and says so once where it falls
back. `cached_attention` is for new tokens that look back at a cache.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from typing import Literal

import jax
import jax.numpy as jnp

Kernel = Literal["auto", "plain", "blocked", "cudnn"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Case:
    """What a kernel is asked to do, known while tracing.

    Attributes:
        batch, length, heads, kv_heads, head_dim: B, L, H, K, h.
        dtype: name of the dtype of the queries.
        segmented: rows hold several documents or padding.
        window, softcap: as in `attention`.
    """

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    segmented: bool
    window: int | None
    softcap: float | None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    kernel: Kernel = "auto",
) -> jax.Array:
    """Causal grouped-query self attention, `softmax(q kᵀ / √h) v` (Vaswani et al. 2017, eq. 1).

    Query t sees key s where s <= t, t - s < `window`, and both lie in one document. Scores and softmax are
    float32. A query that is padding sees no document; what it gives is finite and means nothing.

    Args:
        q: `[B, L, H, h]`.
        k, v: `[B, L, K, h]`; head `i` reads kv head `i // G`.
        segment_ids: int `[B, L]`, documents of a packed row, 0 = padding. None: one document per row.
        window: how many tokens back a query sees, itself included; None: all.
        softcap: scores become `softcap · tanh(scores / softcap)` (Gemma 2).
        kernel: `"auto"`, or one by name.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.

    Raises:
        ValueError: shapes do not fit, or the named kernel cannot do this case.
    """
    chosen = _choose(kernel, _case(q, k, v, segment_ids, window, softcap))
    if chosen == "blocked":
        from hllm_jax.nn.attention_blocked import blocked_attention

        return blocked_attention(q, k, v, segment_ids=segment_ids, window=window, softcap=softcap)
    if chosen == "cudnn":
        return _cudnn(q, k, v, segment_ids, window)
    places = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    mask = _sees(places, q.shape[1], window)
    if segment_ids is not None:
        mask &= (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids != 0)[:, :, None]
    return _plain(q, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), mask, softcap)


def cached_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    slots: jax.Array,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Attention of new tokens to a cache that already holds them; scores and softmax as in `attention`.

    Args:
        q: `[B, L, H, h]`.
        keys: `[B, K, h, S]`, transposed as the cache keeps them.
        values: `[B, K, S, h]`.
        slots: int `[B, L]`, where each query stands in the cache: it sees the slots up to its own. -1 is
            padding, whose result is finite and means nothing.
        window, softcap: see `attention`.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.
    """
    keys, values = keys.astype(q.dtype), values.astype(q.dtype)
    return _plain(q, keys, values, _sees(slots, keys.shape[-1], window), softcap)


def _sees(queries: jax.Array, keys: int, window: int | None) -> jax.Array:
    """Which places `0 .. keys-1` a query at each place sees: bool `[B or 1, L, S]`."""
    far = queries.astype(jnp.int32)[:, :, None] - jnp.arange(keys, dtype=jnp.int32)[None, None, :]
    return far >= 0 if window is None else (far >= 0) & (far < window)


def _plain(
    q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, softcap: float | None
) -> jax.Array:
    """All scores in memory. The `G` heads of a kv head are rows of one matrix: keys are not repeated.

    q `[B, L, H, h]`, keys `[B, K, h, S]`, values `[B, K, S, h]`, mask `[B or 1, L, S]` -> `[B, L, H, h]`.
    """
    B, L, H, h = q.shape
    K, S = keys.shape[1], keys.shape[3]
    G = H // K
    rows = q.reshape(B, L, K, G, h).transpose(0, 2, 3, 1, 4).reshape(B, K, G * L, h)
    scores = jnp.matmul(rows, keys, preferred_element_type=jnp.float32).reshape(B, K, G, L, S)
    scores = scores / math.sqrt(h)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    out = jnp.matmul(weights.reshape(B, K, G * L, S), values)
    return out.reshape(B, K, G, L, h).transpose(0, 3, 1, 2, 4).reshape(B, L, H, h).astype(q.dtype)


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, window: int | None
) -> jax.Array:
    """NVIDIA's fused kernel through `jax.nn.dot_product_attention`."""
    # The left window counts tokens before the query, without the query itself.
    local = None if window is None else (window - 1, 0)
    if segment_ids is None:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
        )
    # Padding sees padding: a row that sees nothing is NaN in the backward pass of some cuDNN versions.
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jax.nn.dot_product_attention(
        q, k, v, mask=same[:, None], is_causal=True, local_window_size=local, implementation="cudnn"
    )


def _case(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    window: int | None,
    softcap: float | None,
) -> Case:
    B, L, H, h = q.shape
    K = k.shape[2]
    if k.shape != v.shape or k.shape != (B, L, K, h) or H % K:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit: expected [B, L, H, h] and twice "
            "[B, L, K, h] with H a multiple of K"
        )
    return Case(
        batch=B,
        length=L,
        heads=H,
        kv_heads=K,
        head_dim=h,
        dtype=q.dtype.name,
        segmented=segment_ids is not None,
        window=window,
        softcap=softcap,
    )


def unsupported(kernel: Kernel, case: Case) -> str | None:
    """Why this kernel cannot do this case here; None if it can."""
    return _cudnn_unsupported(case) if kernel == "cudnn" else None


def _cudnn_unsupported(case: Case) -> str | None:
    if jax.default_backend() != "gpu":
        return f"cuDNN needs an NVIDIA GPU, the default backend is {jax.default_backend()}"
    if case.dtype not in ("bfloat16", "float16"):
        return f"cuDNN attention takes bfloat16 or float16, not {case.dtype}"
    if case.softcap is not None:
        return "cuDNN attention has no soft cap"
    if case.head_dim % 8 or case.head_dim > 128:
        return f"cuDNN attention takes head_dim up to 128 in steps of 8, not {case.head_dim}"
    return None


def _choose(kernel: Kernel, case: Case) -> Kernel:
    if kernel != "auto":
        reason = unsupported(kernel, case)
        if reason:
            raise ValueError(f"attention kernel {kernel!r} cannot do this: {reason}; use 'auto' or 'plain'")
        return kernel
    preferred: Kernel | None = {"cpu": "blocked", "gpu": "cudnn"}.get(jax.default_backend())  # type: ignore
    if preferred is None:
        return "plain"
    reason = unsupported(preferred, case)
    if reason is None:
        return preferred
    _say_once(f"attention: plain instead of {preferred}: {reason}")
    return "plain"


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)
