"""What counts: reductions over arrays whose masks travel with them, and where a row ends.

A mask or weight says which positions count; ids are never looked at, so pad = eos is harmless. What has no
weight is replaced before any arithmetic: not even a NaN there reaches a sum or a gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hllm_jax.objectives.sums import quotient


def only(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`x` in float32 where there is weight, 0 elsewhere; no gradient passes there. Same shapes."""
    return jnp.where(weights.astype(bool), x.astype(jnp.float32), 0.0)


def weighted(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(Σ w·x, Σ w)`, an entry of `Sums`; x and weights of one shape."""
    weights = weights.astype(jnp.float32)
    return jnp.sum(weights * only(x, weights)), jnp.sum(weights)


def row_sums(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`Σ_t w·x` of each row, float32 `[B]`: the log-probability of an answer from those of its tokens."""
    weights = weights.astype(jnp.float32)
    return jnp.sum(weights * only(x, weights), axis=-1)


def row_means(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`Σ_t w·x / Σ_t w` of each row, float32 `[B]`; 0 for a row without weight."""
    return quotient(row_sums(x, weights), jnp.sum(weights.astype(jnp.float32), axis=-1))


def held_rows(weights: jax.Array) -> jax.Array:
    """Float32 `[B]`: 1 for a row with any weight, 0 for a row that is left out."""
    return jnp.any(weights.astype(bool), axis=-1).astype(jnp.float32)


def is_last(weights: jax.Array) -> jax.Array:
    """Bool `[B, L]`: the last position of each row that has weight. A row without any has no last one."""
    held = weights.astype(bool).astype(jnp.int32)
    after = jnp.flip(jnp.cumsum(jnp.flip(held, axis=-1), axis=-1), axis=-1)
    return (held == 1) & (after == 1)


def at_last(x: jax.Array, weights: jax.Array) -> jax.Array:
    """What stands at the last position with weight: the score of a text from those of its positions.

    Args:
        x: float `[B, L]`.
        weights: `[B, L]`, not 0 on the tokens of the text; pads may be on either side.

    Returns:
        float32 `[B]`; 0 for a row without any.
    """
    return jnp.sum(only(x, is_last(weights)), axis=-1)


def whiten(
    x: jax.Array,
    weights: jax.Array,
    shift_mean: bool = True,
    unbiased: bool = False,
    epsilon: float = 1e-8,
) -> jax.Array:
    """Scaled to variance 1 over all that has weight.

        (x - μ) / sqrt(σ² + ε), and + μ again where the mean is kept

    Advantages shift the mean to 0; rewards keep it, for a shifted reward would pay for longer or shorter
    answers (Ziegler et al. 2019, in their code; "the N implementation details of RLHF with PPO", 2023).
    By hand: (1, 2, 3) has μ = 2 and σ² = 2/3, so it becomes (-1.2247, 0, 1.2247), with the mean kept
    (0.7753, 2, 3.2247); the unbiased σ² = 1 gives (-1, 0, 1).

    Args:
        x: float `[B, L]`.
        weights: `[B, L]`.
        shift_mean: False keeps the mean.
        unbiased: σ² over n - 1, as `trl` has it; the original code divides by n.
        epsilon: added to the variance.

    Returns:
        float32 `[B, L]`, 0 where there is no weight.
    """
    weights = weights.astype(jnp.float32)
    x = only(x, weights)
    count = jnp.sum(weights)
    mean = quotient(jnp.sum(weights * x), count)
    spread = jnp.sum(weights * jnp.square(x - mean))
    variance = spread / jnp.maximum(count - 1.0 if unbiased else count, 1.0)
    whitened = (x - mean) * jax.lax.rsqrt(variance + epsilon)
    return only(whitened if shift_mean else whitened + mean, weights)
