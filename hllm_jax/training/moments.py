"""The moments of an optimizer in fewer bits: bfloat16, or 8 bits by blocks (Dettmers et al. 2022).

A moment of 8 bits is one code an entry, in an array of the parameter's shape, so that it is sharded as that
parameter is, and one float32 scale for each block of 64 entries along one axis: 1.06 bytes instead of 4. (In
the paper they are 2,048 entries of the flat array; shorter ones lose less, and lie within one shard.) A code
is the paper's dynamic tree: with its highest bit at place k it means, of K places,

    10^(k - K + 1) · (0.1 + 0.9 · (rest + 1/2) / 2^k),    rest = the code below that bit

so each decade has half the steps of the one above it. First moments have a sign and 7 places. Of second
moments the root is kept, which is what updates divide by and spans half the decades, in 8 places; it is never
rounded to 0, which an update must not divide by. Rounding is to the nearest, not stochastic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

BLOCK = 64
#: Axes that only divide into shorter blocks are left alone: their scales would weigh too much.
SHORTEST = 16
#: Arrays of fewer entries stay in float32 (section 2.2 of the paper).
SMALLEST = 4096

#: Fields of an Optax state that are moments, and that which is of squares.
MOMENTS = ("mu", "nu")
SQUARES = "nu"


class Blocks(flax.struct.PyTreeNode):
    """An array in 8 bits.

    Attributes:
        codes: of its shape; int8, or uint8 for the roots of second moments.
        scales: float32, the largest magnitude of each block, of its shape with one axis divided by the block.
    """

    codes: Any
    scales: Any


def with_state_dtype(
    transform: optax.GradientTransformation,
    dtype: Literal["float32", "bfloat16", "int8"],
    vectors: Sequence[str] = (),
) -> optax.GradientTransformation:
    """The same transformation, which keeps its moments in another dtype and computes in float32.

    Args:
        transform: with moments in fields named `mu` and `nu` that have the tree of the parameters.
        dtype: of both moments.
        vectors: last names of parameters whose moments are never of 8 bits.
    """

    def narrow(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        fields = [entry.name for entry in path if isinstance(entry, jax.tree_util.GetAttrKey)]
        field = next((name for name in reversed(fields) if name in MOMENTS), None)
        if field is None:
            return leaf
        if dtype == "int8":
            names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            if names[-1] not in vectors and block_axis(leaf.shape) is not None:
                return quantise(jnp.sqrt(leaf) if field == SQUARES else leaf, signed=field != SQUARES)
            return leaf.astype(jnp.float32)
        return leaf.astype(dtype)

    def wide(path: tuple[Any, ...], leaf: Any) -> Any:
        if isinstance(leaf, Blocks):
            value = dequantise(leaf)
            return value if leaf.codes.dtype == jnp.int8 else jnp.square(value)
        moment = any(getattr(entry, "name", None) in MOMENTS for entry in path)
        return leaf.astype(jnp.float32) if moment else leaf

    def init(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(narrow, transform.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        state = jax.tree_util.tree_map_with_path(wide, state, is_leaf=_is_blocks)
        updates, state = transform.update(updates, state, params)
        return updates, jax.tree_util.tree_map_with_path(narrow, state)

    return optax.GradientTransformation(init, update)


def _is_blocks(leaf: Any) -> bool:
    return isinstance(leaf, Blocks)


def block_axis(shape: tuple[int, ...]) -> int | None:
    """The axis along which an array of this shape has its blocks, or None for one that stays in float32.

    Never the last one, whose entries lie side by side on an accelerator; of the others the one that divides
    best.
    """
    if len(shape) < 2 or math.prod(shape) < SMALLEST:
        return None
    axis = max(range(len(shape) - 1), key=lambda axis: (math.gcd(shape[axis], BLOCK), axis))
    return axis if math.gcd(shape[axis], BLOCK) >= SHORTEST else None


def quantise(x: jax.Array, signed: bool = True) -> Blocks:
    """Codes and scales of a float array.

    Args:
        x: of a shape that `block_axis` takes.
        signed: else no entry is negative, and none above 0 becomes 0.
    """
    axis = block_axis(x.shape)
    assert axis is not None, x.shape
    block = math.gcd(x.shape[axis], BLOCK)
    blocks = x.astype(jnp.float32).reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])
    scales = jnp.max(jnp.abs(blocks), axis=axis + 1, keepdims=True)
    part = jnp.abs(blocks) / jnp.where(scales == 0, 1.0, scales)
    codes = _codes(part, places=7 if signed else 8, round_up=not signed)
    if signed:
        codes = jnp.where(blocks < 0, -codes, codes)
    codes = codes.astype(jnp.int8 if signed else jnp.uint8)
    return Blocks(codes.reshape(x.shape), scales.squeeze(axis + 1))


def dequantise(blocks: Blocks) -> jax.Array:
    """The float32 array that codes and scales mean."""
    codes, signed = blocks.codes, blocks.codes.dtype == jnp.int8
    ratios = [whole // part for whole, part in zip(codes.shape, blocks.scales.shape, strict=True)]
    axis = max(range(codes.ndim), key=lambda axis: ratios[axis])
    places = 7 if signed else 8
    # Scaled so that the largest entry of a block, which has the last code, comes out as it went in.
    top = _values(jnp.int32(2**places - 1), places)
    code = codes.reshape(*codes.shape[:axis], -1, ratios[axis], *codes.shape[axis + 1 :]).astype(jnp.int32)
    size = _values(jnp.abs(code), places) / top * jnp.expand_dims(blocks.scales, axis + 1)
    return jnp.where(code < 0, -size, size).reshape(codes.shape)


def _codes(part: jax.Array, places: int, round_up: bool) -> jax.Array:
    """int32 codes of numbers in [0, 1]: the nearest, within a decade."""
    part = part * _values(jnp.int32(2**places - 1), places)
    decades = np.float32(10.0) ** np.arange(1 - places, 1, dtype=np.float32)  # the upper end of each
    place = jnp.zeros(part.shape, jnp.int32)
    for end in decades[:-1]:
        place += part > end
    steps = jnp.left_shift(1, place)
    within = part / jnp.asarray(decades)[0] * 10.0 ** (-place.astype(jnp.float32))
    rest = jnp.floor((within - 0.1) / 0.9 * steps).astype(jnp.int32)
    code = steps + jnp.clip(rest, 0, steps - 1)
    nothing = part == 0 if round_up else part < _values(jnp.int32(1), places) / 2
    return jnp.where(nothing, 0, code)


def _values(code: jax.Array, places: int) -> jax.Array:
    """float32 numbers below 1 that codes without a sign mean."""
    place = 31 - jax.lax.clz(jnp.maximum(code, 1))
    steps = jnp.left_shift(1, place)
    fraction = (code - steps).astype(jnp.float32) + 0.5
    decade = 10.0 ** (place - (places - 1)).astype(jnp.float32)
    return jnp.where(code == 0, 0.0, decade * (0.1 + 0.9 * fraction / steps.astype(jnp.float32)))
