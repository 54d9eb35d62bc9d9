"""Positions that are added to the embedding, or to the scores: learned, sinusoidal, relative."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hllm_jax.nn.axes import parameter


class Table(nn.Module):
    """A learned table `embedding [N, D]` of few rows: positions (Gehring et al. 2017), kinds of tokens."""

    rows: int
    embed: int
    std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        """index int `[B, L]` -> `[B, L, D]`; one outside the table gives NaN, not the last row."""
        init, shape = nn.initializers.normal(self.std), (self.rows, self.embed)
        axes = ("positions", "embed")
        table = parameter(self, "embedding", init, shape, axes, self.param_dtype, self.dtype)
        return jnp.take(table, index, axis=0, mode="fill").astype(self.dtype)


def sinusoids(positions: jax.Array, embed: int) -> jax.Array:
    """Sines in the first half of the coordinates, cosines in the second: float32 `[B, L, D]`.

    The frequencies are `10000^(-2i / D)` (Vaswani et al. 2017, section 3.5, which interleaves the two; the
    authors' tensor2tensor and Marian keep them apart: only the order of coordinates differs).

    Args:
        positions: int `[B, L]`.
        embed: D, even.
    """
    frequencies = (10000.0 ** -(np.arange(0, embed, 2) / embed)).astype(np.float32)
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class RelativeBias(nn.Module):
    """A learned number per head and bucket of distance, added to the scores (Raffel et al. 2020, 2.1; T5).

    Half of the buckets hold one distance each, the others ever longer ranges up to `distance`, beyond which
    all distances share the last one.

    Attributes:
        heads: H.
        buckets: how many; where both directions are seen each has half of them.
        distance: from which on all are alike.
        causal: only keys before the query are seen.
        std: of the initialisation.
    """

    heads: int
    buckets: int = 32
    distance: int = 128
    causal: bool = True
    std: float = 0.02
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Positions int `[B or 1, L]` and `[B or 1, S]` -> float32 `[B or 1, H, L, S]`."""
        init, shape = nn.initializers.normal(self.std), (self.buckets, self.heads)
        table = parameter(self, "embedding", init, shape, ("buckets", "heads"), self.param_dtype)
        bucket = self.bucket(keys[:, None, :] - queries[:, :, None])
        return jnp.take(table.astype(jnp.float32), bucket, axis=0).transpose(0, 3, 1, 2)

    def bucket(self, distance: jax.Array) -> jax.Array:
        """Bucket of each `key - query`: int32 of the same shape."""
        count, first = self.buckets, jnp.zeros_like(distance)
        if self.causal:
            far = jnp.maximum(-distance, 0)
        else:
            count //= 2
            first, far = jnp.where(distance > 0, count, 0), jnp.abs(distance)
        # From a table, because logarithms at the edges of buckets are rounded differently on every device.
        table = jnp.asarray(distance_buckets(count, self.distance))
        return first + jnp.take(table, jnp.minimum(far, self.distance), axis=0)


def distance_buckets(count: int, distance: int) -> np.ndarray:
    """Bucket of each distance `0 .. distance`, of `count` in all: int32 `[distance + 1]`.

    `d` itself below `n = count / 2`, then `n + ⌊log(d / n) / log(distance / n) · (count - n)⌋`, in float32 as
    T5's own code has it.
    """
    exact = count // 2
    far = np.arange(distance + 1, dtype=np.int32)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / exact) / np.float32(math.log(distance / exact))
    wide = exact + (ratio * (count - exact)).astype(np.int32)
    return np.where(far < exact, far, np.minimum(wide, count - 1)).astype(np.int32)
