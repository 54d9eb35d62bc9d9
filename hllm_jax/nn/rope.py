"""Rotary position embedding (Su et al. 2021, eq. 34), in both pairings of the coordinates.

The angles are computed from the positions, not looked up: a table that is too short would be read at its
last row without an error, because JAX clamps indices.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Pairing = Literal["half", "interleaved"]


def rope_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of `positions · theta^(-2i / head_dim)`.

    Args:
        positions: int `[B, L]`.
        head_dim: even.
        theta: base of the frequencies.

    Returns:
        Two float32 arrays `[B, L, h/2]`.
    """
    # Known while tracing, so they are computed in float64: an error here grows with the position.
    frequencies = (theta ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array, pairing: Pairing) -> jax.Array:
    """Rotate pairs of coordinates of each head.

    Args:
        x: `[B, L, H, h]`.
        cos, sin: `[B, L, h/2]` from `rope_angles`.
        pairing: `"half"` pairs i with i + h/2 (Hugging Face), `"interleaved"` pairs 2i with 2i + 1
            (Meta, llama2.c, GGUF). Which one a checkpoint uses is data of its family.

    Returns:
        `[B, L, H, h]` in the dtype of `x`; the rotation is done in float32.
    """
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    y = x.astype(jnp.float32)
    if pairing == "half":
        a, b = jnp.split(y, 2, axis=-1)
        y = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    else:
        pairs = y.reshape(*y.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        y = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(y.shape)
    return y.astype(x.dtype)
