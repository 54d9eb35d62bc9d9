"""Blocked attention in plain XLA: the kernel for CPUs.

On a CPU, XLA multiplies batches of matrices well and does everything around that slowly: scores of pairs that
the mask then hides, `[B, H, L, S]` probabilities kept for the backward pass, keys repeated for their group of
queries, products that contract over the rows of a large left operand. Here

- queries are cut into blocks, and the keys of a block end at its last row: what lies above the diagonal, or
  before a window, is not computed. The cuts are static, so this is a Python loop that tracing unrolls;
- the backward pass is written by hand and keeps only the output and the log-sum-exp of each row; it computes
  the probabilities again, block by block (Dao et al. 2022, "FlashAttention", algorithm 4);
- the G queries of a key head are rows of one matrix, so keys and values are not repeated;
- gradients of keys and values are formed as `[h, S]`, from a transposed copy of the small operand: twice as
  fast in Eigen as a transposed matrix of probabilities.

A block has all scores of its rows, so no running maximum is needed. Scores, softmax and sums are float32
whatever the inputs are. Padding sees padding, so that every row sees itself and no row is empty.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

#: Rows of a block, and blocks of a sequence: a finer cut saves hidden scores but costs operations and traces.
ROWS, BLOCKS = 128, 8

#: Rows of a batch are done one after another where the scores of one block of all of them would be more.
SCORES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static about one call.

    Attributes:
        blocks: (first query, end of queries, first key, end of keys) of each block.
        causal: as in `attention`.
        scale: factor of the scores.
        window, softcap: as in `attention`.
    """

    blocks: tuple[tuple[int, int, int, int], ...]
    causal: bool
    scale: float
    window: int | None
    softcap: float | None


def blocked_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    rows: int | None = None,
) -> jax.Array:
    """Grouped-query self attention, as `hllm_jax.nn.attention.attention` defines it.

    Args:
        q: `[B, L, H, h]`.
        k, v: `[B, L, K, h]`.
        causal: keys after the query are hidden.
        segment_ids: int `[B, L]`, 0 = padding, or None.
        window: how many tokens back a query sees, itself included; None: all.
        softcap: scores become `softcap · tanh(scores / softcap)`.
        scale: of the scores; None: `1 / √h`.
        rows: queries of a block; None: at least `ROWS`, at most `BLOCKS` blocks.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.
    """
    B, L, H, h = q.shape
    rows = rows or max(ROWS, -(-L // BLOCKS))
    blocks: list[tuple[int, int, int, int]] = []
    for start in range(0, L, rows):
        end = min(start + rows, L)
        first = 0 if window is None else max(0, start - window + 1)
        blocks.append((start, end, first, end if causal else L))
    plan = Plan(tuple(blocks), causal, 1.0 / math.sqrt(h) if scale is None else scale, window, softcap)
    if segment_ids is None:
        segment_ids = jnp.ones((B, L), jnp.int32)
    if B == 1 or B * H * rows * L <= SCORES:
        return _attend(plan, q, k, v, segment_ids)

    def one(row: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, segment_ids = (x[None] for x in row)
        return _attend(plan, q, k, v, segment_ids)[0]

    return jax.lax.map(one, (q, k, v, segment_ids))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    return _forward(plan, q, k, v, segment_ids)[0]


_Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _forward(
    plan: Plan, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> tuple[jax.Array, _Saved]:
    keys, values = _by_head(k), _by_head(v)
    outs: list[jax.Array] = []
    sums: list[jax.Array] = []
    for start, end, first, last in plan.blocks:
        queries = _by_group(q[:, start:end], k.shape[2])
        scores, _ = _scores(plan, queries, keys[:, :, first:last], segment_ids, start, first)
        top = jnp.max(scores, axis=-1)
        weights = jnp.exp(scores - top[..., None])
        total = jnp.sum(weights, axis=-1)
        out = jnp.einsum(
            "BKGLS,BKSh->BKGLh",
            weights.astype(v.dtype),
            values[:, :, first:last],
            preferred_element_type=jnp.float32,
        )
        outs.append(_by_row((out / total[..., None]).astype(q.dtype)))
        sums.append(top + jnp.log(total))
    out, log_sum = jnp.concatenate(outs, axis=1), jnp.concatenate(sums, axis=-1)
    return out, (q, k, v, segment_ids, out, log_sum)


def _backward(
    plan: Plan, saved: _Saved, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """With P the probabilities, O the output and dO its cotangent (FlashAttention, appendix B.2):

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ∘ (dP - rowsum(dO ∘ O)),   dQ = dS K,   dK = dSᵀ Q
    """
    q, k, v, segment_ids, out, log_sum = saved
    K = k.shape[2]
    keys, values = _by_head(k), _by_head(v)
    to_q: list[jax.Array] = []
    to_k: list[tuple[int, jax.Array]] = []
    to_v: list[tuple[int, jax.Array]] = []
    for start, end, first, last in plan.blocks:
        queries, outward = _by_group(q[:, start:end], K), _by_group(cotangent[:, start:end], K)
        inner = jnp.sum(
            outward.astype(jnp.float32) * _by_group(out[:, start:end], K).astype(jnp.float32), axis=-1
        )
        scores, slope = _scores(plan, queries, keys[:, :, first:last], segment_ids, start, first)
        weights = jnp.exp(scores - log_sum[..., start:end, None])
        to_weights = jnp.einsum(
            "BKGLh,BKSh->BKGLS", outward, values[:, :, first:last], preferred_element_type=jnp.float32
        )
        to_scores = weights * (to_weights - inner[..., None]) * plan.scale
        if slope is not None:
            to_scores = to_scores * slope
        to_scores, weights = to_scores.astype(q.dtype), weights.astype(q.dtype)
        block = jnp.einsum(
            "BKGLS,BKSh->BKGLh", to_scores, keys[:, :, first:last], preferred_element_type=jnp.float32
        )
        to_q.append(_by_row(block.astype(q.dtype)))
        to_k.append((first, _transposed_product(q[:, start:end], to_scores)))
        to_v.append((first, _transposed_product(cotangent[:, start:end], weights)))
    length = q.shape[1]
    return jnp.concatenate(to_q, axis=1), _total(to_k, length, k), _total(to_v, length, v), None


_attend.defvjp(_forward, _backward)


def _scores(
    plan: Plan, queries: jax.Array, keys: jax.Array, segment_ids: jax.Array, start: int, first: int
) -> tuple[jax.Array, jax.Array | None]:
    """Masked scores float32 `[B, K, G, L, S]` of one block, and the slope of the soft cap at each.

    Args:
        plan: of the call.
        queries: `[B, K, G, L, h]`, the tokens from `start` on.
        keys: `[B, K, S, h]`, the tokens from `first` on.
        segment_ids: int `[B, length of the row]`.
        start, first: see `queries` and `keys`.
    """
    scores = jnp.einsum("BKGLh,BKSh->BKGLS", queries, keys, preferred_element_type=jnp.float32) * plan.scale
    slope = None
    if plan.softcap is not None:
        bent = jnp.tanh(scores / plan.softcap)
        scores, slope = plan.softcap * bent, 1.0 - jnp.square(bent)
    L, S = scores.shape[-2:]
    query = start + jnp.arange(L, dtype=jnp.int32)[None, :, None]
    key = first + jnp.arange(S, dtype=jnp.int32)[None, None, :]
    mask = key <= query if plan.causal else jnp.ones((1, L, S), bool)
    if plan.window is not None:
        mask &= query - key < plan.window
    mask &= segment_ids[:, start : start + L, None] == segment_ids[:, None, first : first + S]
    return jnp.where(mask[:, None, None], scores, -jnp.inf), slope


def _transposed_product(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """`[B, L, H, h]` and `[B, K, G, L, S]` -> float32 `[B, K, h, S]`, summed over the rows of the weights."""
    B, K, G, L, S = weights.shape
    h = rows.shape[-1]
    left = rows.reshape(B, L, K, G, h).transpose(0, 2, 4, 3, 1).reshape(B, K, h, G * L)
    right = weights.reshape(B, K, G * L, S)
    return jnp.einsum("BKhr,BKrS->BKhS", left, right, preferred_element_type=jnp.float32)


def _total(parts: list[tuple[int, jax.Array]], length: int, like: jax.Array) -> jax.Array:
    """Sum of parts `[B, K, h, S]`, each from its first key on: `[B, L, K, h]` in the dtype of `like`.

    They are turned and added in place, one after another: written as a sum, it is computed again, in strides,
    wherever it is read.
    """
    B, _, K, h = like.shape
    total = jnp.zeros((B, length, K, h), jnp.float32)
    for first, part in parts:
        turned = part.transpose(0, 3, 1, 2)
        before = jax.lax.slice_in_dim(total, first, first + turned.shape[1], axis=1)
        total = jax.lax.dynamic_update_slice_in_dim(total, before + turned, first, axis=1)
    return total.astype(like.dtype)


def _by_head(x: jax.Array) -> jax.Array:
    """`[B, S, K, h]` -> `[B, K, S, h]`."""
    return x.transpose(0, 2, 1, 3)


def _by_group(x: jax.Array, kv_heads: int) -> jax.Array:
    """`[B, L, H, h]` -> `[B, K, G, L, h]`."""
    B, L, H, h = x.shape
    return x.reshape(B, L, kv_heads, H // kv_heads, h).transpose(0, 2, 3, 1, 4)


def _by_row(x: jax.Array) -> jax.Array:
    """`[B, K, G, L, h]` -> `[B, L, H, h]`."""
    B, K, G, L, h = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(B, L, K * G, h)
