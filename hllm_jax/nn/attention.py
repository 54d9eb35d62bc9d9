"""One name for attention, several kernels behind it.

`attention` decides who may attend to whom, from segment ids (self attention) or cache slots, the same for
every kernel; `plain` is the one that all others are tested against. A kernel that is asked for by name
and cannot do the case raises; `auto` takes the fastest that can, and says so once where it falls back.

A kernel with a module of its own offers two functions, imported when it is first considered:
`unsupported(case: Case) -> str | None`, why it cannot do a case, and the kernel itself, for
`nn/attention_blocked.py` `blocked_attention(q, k, v, *, segment_ids, window, softcap)`.
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
        batch, length, keys, heads, kv_heads, head_dim: B, L, S, H, K, h.
        dtype: name of the dtype of the queries.
        segmented: rows hold several documents or padding.
        cached: keys come from a cache (`slots`), so that L and S differ.
        window, softcap: as in `attention`.
    """

    batch: int
    length: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    segmented: bool
    cached: bool
    window: int | None
    softcap: float | None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    slots: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    kernel: Kernel = "auto",
) -> jax.Array:
    """Causal grouped-query attention, `softmax(q kᵀ / √h) v` (Vaswani et al. 2017, eq. 1).

    Query t sees key s where s <= t, t - s < `window`, and both lie in one document. Scores and softmax are
    float32. A query that is padding sees no document; what it gives is finite and means nothing.

    Args:
        q: `[B, L, H, h]`.
        k, v: `[B, S, K, h]`; head `i` reads kv head `i // G`. S = L without `slots`.
        segment_ids: int `[B, L]`, documents of a packed row, 0 = padding. None: one document per row.
        slots: int `[B, L]`: the keys are a cache, and the query stands at this slot of it (-1 = padding).
            Not together with `segment_ids`.
        window: how many tokens back a query sees, itself included; None: all.
        softcap: scores become `softcap · tanh(scores / softcap)` (Gemma 2).
        kernel: `"auto"`, or one by name.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.

    Raises:
        ValueError: shapes do not fit, or the named kernel cannot do this case.
    """
    case = _case(q, k, v, segment_ids, slots, window, softcap)
    chosen = _choose(kernel, case)
    if chosen == "blocked":
        from hllm_jax.nn import attention_blocked

        return attention_blocked.blocked_attention(
            q, k, v, segment_ids=segment_ids, window=window, softcap=softcap
        )
    if chosen == "cudnn":
        return _cudnn(q, k, v, segment_ids, window)
    return _plain(q, k, v, visible(case, segment_ids, slots), softcap)


def visible(case: Case, segment_ids: jax.Array | None, slots: jax.Array | None) -> jax.Array:
    """Which key each query sees: bool `[B or 1, L, S]`."""
    key = jnp.arange(case.keys, dtype=jnp.int32)[None, None, :]
    if slots is not None:
        query = slots.astype(jnp.int32)[:, :, None]
    else:
        query = jnp.arange(case.length, dtype=jnp.int32)[None, :, None]
    mask = key <= query
    if case.window is not None:
        mask &= query - key < case.window
    if segment_ids is not None:
        mask &= (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids != 0)[:, :, None]
    return mask


def _plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, softcap: float | None) -> jax.Array:
    """Scores of all pairs in memory; XLA fuses what it can."""
    B, L, H, h = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, L, K, H // K, h)
    scores = jnp.einsum("BLKGh,BSKh->BKGLS", grouped, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(h)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = mask[:, None, None, :, :]
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    out = jnp.einsum("BKGLS,BSKh->BLKGh", weights.astype(v.dtype), v)
    return out.reshape(B, L, H, h).astype(q.dtype)


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
    slots: jax.Array | None,
    window: int | None,
    softcap: float | None,
) -> Case:
    B, L, H, h = q.shape
    _, S, K, _ = k.shape
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != h or H % K:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit: expected [B, L, H, h] and twice "
            "[B, S, K, h] with H a multiple of K"
        )
    if slots is None and S != L:
        raise ValueError(f"attention: {L} queries and {S} keys: pass `slots` where the keys are a cache")
    if slots is not None and segment_ids is not None:
        raise ValueError("attention: pass `segment_ids` (self attention) or `slots` (cache), not both")
    return Case(
        batch=B,
        length=L,
        keys=S,
        heads=H,
        kv_heads=K,
        head_dim=h,
        dtype=q.dtype.name,
        segmented=segment_ids is not None,
        cached=slots is not None,
        window=window,
        softcap=softcap,
    )


def unsupported(kernel: Kernel, case: Case) -> str | None:
    """Why this kernel cannot do this case here; None if it can."""
    if kernel == "blocked":
        try:
            from hllm_jax.nn import attention_blocked
        except ImportError as error:
            return str(error)
        return attention_blocked.unsupported(case)
    if kernel == "cudnn":
        return _cudnn_unsupported(case)
    return None


def _cudnn_unsupported(case: Case) -> str | None:
    if jax.default_backend() != "gpu":
        return f"cuDNN needs an NVIDIA GPU, the default backend is {jax.default_backend()}"
    if case.dtype not in ("bfloat16", "float16"):
        return f"cuDNN attention takes bfloat16 or float16, not {case.dtype}"
    if case.cached:
        return "a cache with one length per row is done by plain attention"
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
    if not case.cached:
        _say_once(f"attention: plain instead of {preferred}: {reason}")
    return "plain"


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)
