"""From logits to the next token: pure functions on `[B, V]` float32, every parameter an array over the rows.

Because parameters are arrays and not Python numbers, one compiled program serves greedy and sampled,
truncated and untruncated requests side by side. Work that no row asks for is skipped at run time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.generation.request import Sampling

#: Ids of a vocabulary that a draw takes together.
BLOCK = 256


class SamplingRows(NamedTuple):
    """The fields of `Sampling` for every row, and where its random numbers come from. All `[B]`."""

    temperature: jax.Array  # float32, 0 = greedy
    top_k: jax.Array  # int32, 0 = off
    top_p: jax.Array  # float32, 1 = off
    min_p: jax.Array  # float32, 0 = off
    repetition_penalty: jax.Array  # float32, 1 = off
    seed: jax.Array  # uint32 [B, 3]: seed, row of the request, sample within the row


def sampling_rows(samplings: Sequence[Sampling], seeds: Sequence[tuple[int, int, int]]) -> SamplingRows:
    """Stack the parameters of B rows; `seeds` are (seed, row, sample) per row."""

    def stack(values: list[float], dtype: type) -> jax.Array:
        return jnp.asarray(np.asarray(values, dtype))

    return SamplingRows(
        temperature=stack([s.temperature for s in samplings], np.float32),
        top_k=stack([s.top_k or 0 for s in samplings], np.int32),
        top_p=stack([s.top_p for s in samplings], np.float32),
        min_p=stack([s.min_p for s in samplings], np.float32),
        repetition_penalty=stack([s.repetition_penalty for s in samplings], np.float32),
        seed=jnp.asarray(np.asarray(seeds, np.uint32).reshape(len(samplings), 3)),
    )


def sample(
    logits: jax.Array, rows: SamplingRows, positions: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Choose the next token of every row.

    Args:
        logits: float32 `[B, V]`.
        rows: parameters per row.
        positions: int32 `[B]`, where the new token will stand in its row; enters the random key.
        seen: bool `[B, V]`, tokens that the repetition penalty applies to.

    Returns:
        tokens int32 `[B]` and their log-probabilities float32 `[B]` under the raw logits.
    """
    chosen_from = jax.lax.cond(
        jnp.any(rows.repetition_penalty != 1.0),
        lambda: penalize(logits, seen, rows.repetition_penalty),
        lambda: logits,
    )
    drawing = rows.temperature > 0.0

    def draw() -> jax.Array:
        tempered = temper(chosen_from, rows.temperature)
        truncated = (rows.top_k > 0) | (rows.top_p < 1.0) | (rows.min_p > 0.0)
        kept = jax.lax.cond(
            jnp.any(truncated & drawing),
            lambda: truncate(tempered, rows.top_k, rows.top_p, rows.min_p),
            lambda: tempered,
        )
        return draw_each(row_keys(rows.seed, positions), kept)

    nothing = jnp.zeros_like(positions)
    drawn = jax.lax.cond(jnp.any(drawing), draw, lambda: nothing)
    best = jax.lax.cond(jnp.all(drawing), lambda: nothing, lambda: most_probable(chosen_from))
    tokens = jnp.where(drawing, drawn, best)
    taken = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return tokens, taken - jax.nn.logsumexp(logits, axis=-1)


def most_probable(logits: jax.Array) -> jax.Array:
    """The first of the best ids of each row: `[B, V]` -> int32 `[B]`; the last id where all are NaN.

    Two plain reductions: `argmax` carries pairs, which XLA on CPU takes one by one.
    """
    ids = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :]
    best = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == best, ids, logits.shape[1] - 1), axis=-1)


def draw_each(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """One id of each row from softmax(logits), by its own key: `[B]` and `[B, V]` -> int32 `[B]`.

    First a block of ids, then one of its ids: two random numbers a row. Noise on every logit would take one
    for each id of the vocabulary, and cost more than all else here.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -logits.shape[1] % BLOCK))).reshape(len(logits), -1, BLOCK)
    uniform = jax.vmap(functools.partial(jax.random.uniform, shape=(2,)))(keys)
    block = draw_one(jnp.sum(blocks, axis=-1), uniform[:, 0])
    within = draw_one(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], uniform[:, 1])
    return block * BLOCK + within


def draw_one(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Index i with probability weights[i] / Σ weights: `[B, N]` and `[B]` in [0, 1) -> int32 `[B]`.

    The first whose running sum is beyond `uniform` of the whole; never one of weight 0, however sums round (0
    where none has weight). `uniform` has 23 bits: what is less likely than 1e-7 is not told from that.
    """
    sums, ids = jnp.cumsum(weights, axis=-1), jnp.arange(weights.shape[1], dtype=jnp.int32)[None, :]
    possible = weights > 0.0
    last = jnp.max(jnp.where(possible, ids, 0), axis=-1, keepdims=True)
    beyond = possible & (sums > uniform[:, None] * sums[:, -1:])
    return jnp.min(jnp.where(beyond, ids, last), axis=-1)


def row_keys(seed: jax.Array, positions: jax.Array) -> jax.Array:
    """One PRNG key per row, `[B]`, from its (seed, row, sample) `[B, 3]` and the position `[B]` alone.

    The generator is named, because another one (`rbg`) would give a row other numbers in another batch.
    """

    def one(parts: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.key(0, impl="threefry2x32")
        for part in (parts[0], parts[1], parts[2], position):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(one)(seed, positions)


def penalize(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Lower logits `[B, V]` of `seen` tokens: divided by `penalty` `[B]` where positive, else multiplied."""
    by = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / by, logits * by), logits)


def temper(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits `[B, V]` over temperature `[B]` (0 divides by 1), the best at 0, so that none overflows."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    return (logits - best) / jnp.where(temperature > 0.0, temperature, 1.0)[:, None]


def truncate(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """Set logits to -inf that top-k, then top-p of the rest, then min-p of the rest drop; see `Sampling`.

    Args:
        logits: float32 `[B, V]`.
        top_k: int32 `[B]`, 0 = off.
        top_p: float32 `[B]`, 1 = off; at least the best token stays.
        min_p: float32 `[B]`, 0 = off.
    """
    best = jnp.max(logits, axis=-1, keepdims=True)

    in_top_k = at_least(logits, lambda kept: jnp.sum(kept, axis=-1) >= top_k)
    logits = jnp.where(in_top_k | (top_k == 0)[:, None], logits, -jnp.inf)

    probs = jax.nn.softmax(logits, axis=-1)
    in_top_p = at_least(logits, lambda kept: jnp.sum(jnp.where(kept, probs, 0.0), axis=-1) >= top_p)
    logits = jnp.where(in_top_p | (top_p >= 1.0)[:, None] | (logits == best), logits, -jnp.inf)

    return jnp.where(logits >= best + jnp.log(min_p)[:, None], logits, -jnp.inf)


def at_least(values: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The smallest set `values >= t` of each row that is `enough`; the whole row where no set is.

    Found without sorting: 32 passes that set the bits of the threshold t from the top, which is exact, keeps
    ties together, and vectorises where a sort of a whole vocabulary does not.

    Args:
        values: float32 `[B, V]`.
        enough: bool mask `[B, V]` -> bool `[B]`; once true, it stays true for larger masks.

    Returns:
        bool mask `[B, V]`.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    # An unsigned integer with the order of the floats: all bits of negatives flipped, the sign of the others.
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def set_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(enough(order >= higher[:, None]), higher, threshold)

    lowest = jnp.zeros(values.shape[0], jnp.uint32)
    return order >= jax.lax.fori_loop(0, 32, set_bit, lowest)[:, None]
