"""Rotary position embedding (Su et al. 2021, eq. 34), in both pairings of the coordinates.

The angles are computed from the positions, not looked up: a table that is too short would be read at its
last row without an error, because JAX clamps indices.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.nn.config import Pairing, RopeScaling
from hllm_jax.nn.target import target_platform


def rope_frequencies(dims: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """`theta^(-2i / dims)` for each pair, stretched as `scaling` says: float32 `[dims / 2]`.

    Rounded where those rounded who trained and published models: one last bit is an angle of 0.01 at position
    100,000, whichever of the two is the better number.
    """
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    # NumPy's float32 power is off by two last bits at times.
    frequencies = np.float32(1) / (theta ** exponents.astype(np.float64)).astype(np.float32)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    turns = scaling.original_length / (np.float32(2 * math.pi) / frequencies)
    kept = np.clip((turns - np.float32(scaling.low)) / np.float32(scaling.high - scaling.low), 0, 1)
    return (1 - kept) * frequencies / np.float32(scaling.factor) + kept * frequencies


def rope_angles(
    positions: jax.Array, dims: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of `positions · frequencies`.

    Args:
        positions: int `[B, L]`.
        dims: coordinates of a head that turn; even.
        theta: base of the frequencies.
        scaling: see `RopeScaling`.

    Returns:
        Two float32 arrays `[B, L, dims/2]`.
    """
    frequencies = rope_frequencies(dims, theta, scaling)
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    if target_platform() != "cpu":
        return jnp.cos(angles), jnp.sin(angles)

    # XLA on CPU holds cosines for cheap and computes them anew in each product, for every head and layer.
    # It fuses nothing into what a loop returns.
    def one(which: jax.Array) -> jax.Array:
        return jax.lax.cond(which == 0, jnp.cos, jnp.sin, angles)

    both = jax.lax.map(one, jnp.arange(2))
    return both[0], both[1]


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array, pairing: Pairing) -> jax.Array:
    """Rotate pairs of coordinates of each head.

    Args:
        x: `[B, L, H, h]`.
        cos, sin: `[B, L, r/2]` from `rope_angles`; the first r coordinates turn, the others stay.
        pairing: `"half"` pairs i with i + r/2, `"interleaved"` pairs 2i with 2i + 1. Which one a checkpoint
            uses is data of its family and format.

    Returns:
        `[B, L, H, h]` in the dtype of `x`; the rotation is done in float32.
    """
    turning = 2 * cos.shape[-1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    y = x[..., :turning].astype(jnp.float32)
    if pairing == "half":
        a, b = jnp.split(y, 2, axis=-1)
        y = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    else:
        pairs = y.reshape(*y.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        y = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(y.shape)
    y = y.astype(x.dtype)
    return y if turning == x.shape[-1] else jnp.concatenate([y, x[..., turning:]], axis=-1)
