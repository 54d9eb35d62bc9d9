"""One name for attention, several kernels behind it.

`attention` is for whole rows, and every kernel is tested against its `plain` one. A kernel that is asked for
by name and cannot do the case raises; `auto` takes the fastest that can, and says so once where it falls
back. `cached_attention` is for new tokens that look back at a cache, `recalling_attention` for those that
look at another row.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hllm_jax.nn.axes import axes_of, on_shards, split_into
from hllm_jax.nn.config import Kernel
from hllm_jax.nn.target import target_platform

log = logging.getLogger(__name__)

#: Platform -> the kernel that `auto` takes where it can do the case, else `plain`.
PREFERRED: dict[str, Kernel] = {"cpu": "blocked", "gpu": "cudnn", "tpu": "splash"}


@dataclasses.dataclass(frozen=True)
class Case:
    """What a kernel is asked to do, known while tracing.

    Attributes:
        batch, length, keys, heads, kv_heads, head_dim: B, L, S, H, K, h.
        dtype: name of the dtype of the queries.
        segmented: rows hold several documents or padding.
        causal, window, softcap: as in `attention`.
        elsewhere: the keys are of another row, as long or not.
        prefixed, biased, dropout: whether `prefix`, `bias`, and a `dropout` above 0 were given.
    """

    batch: int
    length: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    segmented: bool
    causal: bool
    window: int | None
    softcap: float | None
    elsewhere: bool
    prefixed: bool
    biased: bool
    dropout: bool


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Probabilities of attention that are zeroed at random: their share, and the key that draws them."""

    rate: float
    key: jax.Array


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    segment_ids: jax.Array | None = None,
    key_segment_ids: jax.Array | None = None,
    prefix: jax.Array | None = None,
    bias: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout: Dropout | None = None,
    kernel: Kernel = "auto",
) -> jax.Array:
    """Grouped-query attention, `softmax(q kᵀ · scale + bias) v` (Vaswani et al. 2017, eq. 1).

    Query t sees key s where both lie in one document, and, if `causal`, s <= t or `prefix[s]`, and
    t - s < `window`. Scores and softmax are float32. A query that is padding sees no document; what it gives
    is finite and means nothing.

    Args:
        q: `[B, L, H, h]`.
        k, v: `[B, S, K, h]`; head `i` reads kv head `i // G`. S = L unless not causal.
        causal: keys after the query are hidden.
        segment_ids: int `[B, L]`, documents of a packed row, 0 = padding. None: one document per row.
        key_segment_ids: int `[B, S]`, the same of the keys where they are not those of the queries (cross
            attention: segment i of the decoder sees segment i of the encoder); give both or neither.
        prefix: bool or int `[B, S]`, keys that every query of their document sees (prefix LM); causal only.
        bias: float32 `[B or 1, H, L, S]`, added to the scaled scores (T5's relative positions).
        window: how many tokens back a query sees, itself included; None: all. Causal only.
        softcap: scores become `softcap · tanh(scores / softcap)` (Gemma 2).
        scale: of the scores; None: `1 / √h`.
        dropout: of the probabilities, while training.
        kernel: `"auto"`, or one by name.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.

    Raises:
        ValueError: shapes do not fit, or the named kernel cannot do this case.
    """
    case = _case(q, k, v, segment_ids, key_segment_ids, causal, window, softcap, prefix, bias, dropout)
    chosen = _choose(kernel, case)
    scale = 1.0 / math.sqrt(case.head_dim) if scale is None else scale
    told: dict[str, Any]
    if chosen != "plain" and _rings(case):
        told = {"causal": causal, "window": window, "softcap": softcap, "scale": scale}
        return _around_the_ring(told, q, k, v, segment_ids)
    if chosen != "plain":
        told = {"causal": causal, "window": window, "softcap": softcap, "scale": scale}
        return _on_devices(functools.partial(_kernel(chosen), **told), q, k, v, segment_ids)
    mask = jnp.ones((1, case.length, case.keys), bool)
    if causal:
        places = jnp.arange(case.length, dtype=jnp.int32)[None]
        mask = _sees(places, case.keys, window)
    if prefix is not None:
        mask |= (prefix != 0)[:, None, :]
    if segment_ids is not None:
        of_keys = segment_ids if key_segment_ids is None else key_segment_ids
        mask &= (segment_ids[:, :, None] == of_keys[:, None, :]) & (segment_ids != 0)[:, :, None]
    return _plain(q, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), mask, softcap, scale, bias, dropout)


def cached_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    slots: jax.Array,
    *,
    prefix: jax.Array | None = None,
    bias: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Attention of new tokens to a cache that already holds them; scores and softmax as in `attention`.

    Args:
        q: `[B, L, H, h]`.
        keys: `[B, K, h, S]`, transposed as the cache keeps them.
        values: `[B, K, S, h]`.
        slots: int `[B, L]`, where each query stands in the cache: it sees the slots up to its own. -1 is
            padding, whose result is finite and means nothing.
        prefix: bool or int `[B, L]`, new tokens that all new tokens see.
        bias: float32 `[B or 1, H, L, S]`.
        window, softcap, scale: see `attention`.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.
    """
    keys, values = keys.astype(q.dtype), values.astype(q.dtype)
    mask = _sees(slots, keys.shape[-1], window)
    if prefix is not None:
        rows = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
        seen = jnp.zeros((slots.shape[0], keys.shape[-1]), bool)
        seen = seen.at[rows, jnp.where(slots < 0, keys.shape[-1], slots)].set(prefix != 0, mode="drop")
        mask |= seen[:, None, :]
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    return _plain(q, keys, values, mask, softcap, scale, bias)


def recalling_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    softcap: float | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Attention of new tokens to a row that no new token changes, in the layout of the cache.

    Args:
        q: `[B, L, H, h]`.
        keys: `[B, K, h, S]`.
        values: `[B, K, S, h]`.
        segment_ids: int `[B, S]`, keys that are 0 are padding and seen by no query; None: there is none.
        softcap, scale: see `attention`.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.
    """
    there = jnp.ones((1, keys.shape[-1]), bool) if segment_ids is None else segment_ids != 0
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    mask = jnp.broadcast_to(there[:, None, :], (there.shape[0], q.shape[1], there.shape[1]))
    return _plain(q, keys.astype(q.dtype), values.astype(q.dtype), mask, softcap, scale)


def _sees(queries: jax.Array, keys: int, window: int | None) -> jax.Array:
    """Which places `0 .. keys-1` a query at each place sees: bool `[B or 1, L, S]`."""
    far = queries.astype(jnp.int32)[:, :, None] - jnp.arange(keys, dtype=jnp.int32)[None, None, :]
    return far >= 0 if window is None else (far >= 0) & (far < window)


def _plain(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    softcap: float | None,
    scale: float,
    bias: jax.Array | None = None,
    dropout: Dropout | None = None,
) -> jax.Array:
    """All scores in memory. The `G` heads of a kv head are rows of one matrix: keys are not repeated.

    q `[B, L, H, h]`, keys `[B, K, h, S]`, values `[B, K, S, h]`, mask `[B or 1, L, S]` -> `[B, L, H, h]`.
    """
    B, L, H, h = q.shape
    K, S = keys.shape[1], keys.shape[3]
    G = H // K
    rows = q.reshape(B, L, K, G, h).transpose(0, 2, 3, 1, 4).reshape(B, K, G * L, h)
    scores = jnp.matmul(rows, keys, preferred_element_type=jnp.float32).reshape(B, K, G, L, S)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias.reshape(bias.shape[0], K, G, L, S)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout is not None:
        kept = jax.random.bernoulli(dropout.key, 1.0 - dropout.rate, weights.shape)
        weights = jnp.where(kept, weights / (1.0 - dropout.rate), 0.0)
    out = jnp.matmul(weights.astype(values.dtype).reshape(B, K, G * L, S), values)
    return out.reshape(B, K, G, L, h).transpose(0, 3, 1, 2, 4).reshape(B, L, H, h).astype(q.dtype)


def _rings(case: Case) -> bool:
    """Whether the positions of a row lie on several devices, and a ring can do the case."""
    ways = split_into("length")
    if ways == 1:
        return False
    given = {
        "keys of another row": case.elsewhere,
        "prefix": case.prefixed,
        "bias": case.biased,
        "dropout": case.dropout,
        f"a length of {case.length} on {ways} devices": bool(case.length % (2 * ways)),
    }
    reason = next((what for what, asked in given.items() if asked), None)
    if reason is not None:
        _say_once(f"attention: every device gathers the whole row instead of a ring: no ring for {reason}")
    return reason is None


def _around_the_ring(
    told: dict[str, Any], q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> jax.Array:
    from hllm_jax.nn.attention_ring import ring_attention

    size = split_into("length")
    kernel = functools.partial(ring_attention, axis=axes_of("length"), size=size, **told)
    if segment_ids is None:
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    k, v = _repeated(q, k, v)
    heads = ("batch", "length", "act_heads")
    names = (heads, heads, heads, ("batch", "length"), ("length",))
    return on_shards(kernel, (q, k, v, segment_ids, jnp.arange(size)), names, heads)


def _repeated(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where there are more devices for heads than key heads, these are repeated, as often as that takes."""
    ways = split_into("act_heads")
    if k.shape[2] % ways and q.shape[2] % ways == 0:
        times = q.shape[2] // k.shape[2]
        return jnp.repeat(k, times, axis=2), jnp.repeat(v, times, axis=2)
    return k, v


def _kernel(name: Kernel) -> Callable[..., jax.Array]:
    """A kernel: `(q, k, v, segment_ids, *, causal, window, softcap, scale)`."""
    if name == "blocked":
        from hllm_jax.nn.attention_blocked import blocked_attention

        return blocked_attention
    if name == "splash":
        from hllm_jax.nn.attention_splash import splash_attention

        return splash_attention
    return _cudnn


def _on_devices(
    kernel: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> jax.Array:
    """A kernel by each device for its own rows and heads: the compiler, which does not see into a loop over
    rows or a hand-written kernel, would gather them all on every device."""
    k, v = _repeated(q, k, v)
    heads = ("batch", None, "act_heads")
    if segment_ids is None:
        return on_shards(kernel, (q, k, v), (heads, heads, heads), heads)
    return on_shards(kernel, (q, k, v, segment_ids), (heads, heads, heads, ("batch",)), heads)


def _cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> jax.Array:
    """NVIDIA's fused kernel, through `jax.nn.dot_product_attention`."""
    assert softcap is None, "see `unsupported`"
    local = None if window is None else (window - 1, 0)
    mask = None
    if segment_ids is not None:
        # Padding sees padding: a row that sees nothing is NaN in the backward pass of some cuDNN versions.
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=causal,
        scale=scale,
        local_window_size=local,
        implementation="cudnn",
    )


def _case(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    key_segment_ids: jax.Array | None,
    causal: bool,
    window: int | None,
    softcap: float | None,
    prefix: jax.Array | None,
    bias: jax.Array | None,
    dropout: Dropout | None,
) -> Case:
    B, L, H, h = q.shape
    S, K = k.shape[1:3]
    if k.shape != v.shape or k.shape != (B, S, K, h) or H % K:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit: expected [B, L, H, h] and twice "
            "[B, S, K, h] with H a multiple of K"
        )
    if causal and S != L:
        raise ValueError(f"attention: {L} queries and {S} keys: causal attention is within one row")
    if not causal and (window is not None or prefix is not None):
        raise ValueError("attention: window and prefix say what a causal query sees, and causal is False")
    if key_segment_ids is not None and segment_ids is None:
        raise ValueError("attention: key_segment_ids need segment_ids of the queries")
    return Case(
        batch=B,
        length=L,
        keys=S,
        heads=H,
        kv_heads=K,
        head_dim=h,
        dtype=q.dtype.name,
        segmented=segment_ids is not None,
        causal=causal,
        window=window,
        softcap=softcap,
        elsewhere=S != L or key_segment_ids is not None,
        prefixed=prefix is not None,
        biased=bias is not None,
        dropout=dropout is not None,
    )


def unsupported(kernel: Kernel, case: Case) -> str | None:
    """Why this kernel cannot do this case here; None if it can."""
    if kernel not in ("blocked", "splash", "cudnn"):
        return None
    given = {
        "keys of another row": case.elsewhere,
        "prefix": case.prefixed,
        "bias": case.biased,
        "dropout": case.dropout,
    }
    for what, asked in given.items():
        if asked:
            return f"the {kernel} kernel has no {what}"
    return _cudnn_unsupported(case) if kernel == "cudnn" else None


def _cudnn_unsupported(case: Case) -> str | None:
    if target_platform() != "gpu":
        return f"cuDNN needs an NVIDIA GPU, this program is for {target_platform()}"
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
    preferred: Kernel | None = PREFERRED.get(target_platform())
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
