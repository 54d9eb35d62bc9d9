"""A function of positions, on one part of the rows after another: few logits are held at once.

Part i has the positions i, i + chunks, …, so that rows whose positions lie on several devices stay there. The
backward pass computes each part again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hllm_jax.objectives.sums import Sums, add


def sum_of_parts(of_part: Callable[..., Sums], arrays: tuple[jax.Array, ...], chunks: int) -> Sums:
    """`of_part(*arrays)`, whose sums are over positions, without all of its logits in memory.

    Args:
        of_part: from parts of the arrays, `[B, L / chunks, …]`, to sums.
        arrays: `[B, L, …]` each.
        chunks: divides L.

    Raises:
        ValueError: it does not.
    """
    several = tuple(_split(array, chunks) for array in arrays)
    shapes = jax.eval_shape(of_part, *(each[0] for each in several))
    nothing = {name: (_zeros(top), _zeros(bottom)) for name, (top, bottom) in shapes.items()}
    remade = jax.checkpoint(of_part)

    def body(total: Sums, part: tuple[jax.Array, ...]) -> tuple[Sums, None]:
        return add(total, remade(*part)), None

    return jax.lax.scan(body, nothing, several)[0]


def map_parts(of_part: Callable[..., Any], arrays: tuple[jax.Array, ...], chunks: int) -> Any:
    """`of_part(*arrays)`, whose result is a tree of `[B, L, …]`, without all of its logits in memory.

    Args:
        of_part: from parts of the arrays, `[B, L / chunks, …]`, to a tree of arrays with the same two axes.
        arrays: `[B, L, …]` each.
        chunks: divides L; of 1 nothing is computed again.

    Raises:
        ValueError: it does not.
    """
    if chunks == 1:
        return of_part(*arrays)
    several = tuple(_split(array, chunks) for array in arrays)
    remade = jax.checkpoint(of_part)

    def body(nothing: None, part: tuple[jax.Array, ...]) -> tuple[None, Any]:
        return nothing, remade(*part)

    return jax.tree.map(_join, jax.lax.scan(body, None, several)[1])


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype)


def _split(array: jax.Array, chunks: int) -> jax.Array:
    """`[B, L, …]` -> `[chunks, B, L / chunks, …]`."""
    length = array.shape[1]
    if length % chunks:
        raise ValueError(f"rows of {length} do not divide into {chunks} chunks of logits")
    split = array.reshape(array.shape[0], length // chunks, chunks, *array.shape[2:])
    return jnp.moveaxis(split, 2, 0)


def _join(parts: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    whole = jnp.moveaxis(parts, 0, 2)
    return whole.reshape(whole.shape[0], whole.shape[1] * whole.shape[2], *whole.shape[3:])
