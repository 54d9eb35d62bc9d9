"""Weights kept in few bits, made whole where they are used: the frozen base under adapters (QLoRA).

A kernel `[I, O]` in the collection `params` is then not an array but a small tree:

    int8   codes int8 [I, O], scales float32 [O]
           W = codes · scales: the largest of each column is ±127 (Dettmers et al. 2022, section 2)
    nf4    codes uint8 [I/2, O] (two a byte), scales uint8 [O, I/64], blocks float32 [n], offset float32 []
           64 values of a column share a scale, and are among 16 quantiles of a normal distribution
           (Dettmers et al. 2023, section 3); the scales less their mean are kept in 8 bits, 256 of them with
           a scale of their own (double quantisation)

with `layers` in front where a scan has stacked the layers. 8.0 and 4.13 bits a weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

Kind = Literal["int8", "nf4"]

#: Name (`jax.ad_checkpoint.checkpoint_name`) of weights that were made whole.
MADE = "gathered"

#: Values of a column that share a scale, and scales that share one.
BLOCK, OF_SCALES = 64, 256

#: The 16 values of NormalFloat (Dettmers et al. 2023, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip


def quantise(matrix: np.ndarray, kind: Kind) -> dict[str, np.ndarray]:
    """A weight in few bits.

    Args:
        matrix: `[I, O]`, or `[layers, I, O]`.
        kind: see the module.
    """
    if matrix.ndim == 3:
        each = [quantise(one, kind) for one in matrix]
        return {name: np.stack([one[name] for one in each]) for name in each[0]}
    matrix = np.asarray(matrix, np.float32)
    if kind == "int8":
        scales = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny) / 127
        return {"codes": np.rint(matrix / scales).astype(np.int8), "scales": scales}
    missing = -matrix.shape[0] % BLOCK
    blocked = np.pad(matrix, ((0, missing), (0, 0))).reshape(-1, BLOCK, matrix.shape[1])
    largest = np.abs(blocked).max(axis=1)
    inverse = 1 / np.where(largest == 0, 1, largest)
    codes = nearest(blocked * inverse[:, None, :], np.array(NF4, np.float32)).reshape(-1, matrix.shape[1])
    offset = largest.mean(dtype=np.float32)
    scales, blocks = _eight_bits(largest.T.reshape(-1) - offset)
    return {
        "codes": codes[0::2] << 4 | codes[1::2],
        "scales": scales.reshape(largest.T.shape),
        "blocks": blocks,
        "offset": offset,
    }


def shapes(inputs: int, outputs: int, kind: Kind) -> dict[str, jax.ShapeDtypeStruct]:
    """What `quantise` makes of a weight `[inputs, outputs]`."""
    if kind == "int8":
        return {
            "codes": jax.ShapeDtypeStruct((inputs, outputs), jnp.int8),
            "scales": jax.ShapeDtypeStruct((outputs,), jnp.float32),
        }
    count = -(-inputs // BLOCK)
    return {
        "codes": jax.ShapeDtypeStruct((count * BLOCK // 2, outputs), jnp.uint8),
        "scales": jax.ShapeDtypeStruct((outputs, count), jnp.uint8),
        "blocks": jax.ShapeDtypeStruct((-(-count * outputs // OF_SCALES),), jnp.float32),
        "offset": jax.ShapeDtypeStruct((), jnp.float32),
    }


def axes(first: str, out: str, kind: Kind) -> dict[str, tuple[str | None, ...]]:
    """Names of the axes of these parts, of a weight whose input and output axis are called so."""
    if kind == "int8":
        return {"codes": (first, out), "scales": (out,)}
    return {"codes": (first, out), "scales": (out, None), "blocks": (None,), "offset": ()}


def kind_of(parts: Mapping[str, Any]) -> Kind:
    """Which of the two kinds these parts are."""
    return "nf4" if "blocks" in parts else "int8"


def dequantise(parts: Mapping[str, Any], inputs: int, dtype: DTypeLike) -> jax.Array:
    """The weight `[…, inputs, O]` again, in `dtype`; computed in float32.

    Args:
        parts: see the module; JAX or NumPy arrays, of one weight or of a stack.
        inputs: I, which blocks may exceed.
        dtype: of the result.
    """
    if jnp.ndim(parts["codes"]) == 3:
        whole = functools.partial(dequantise, inputs=inputs, dtype=dtype)
        return jax.lax.map(whole, {name: jnp.asarray(part) for name, part in parts.items()})
    codes, scales = jnp.asarray(parts["codes"]), jnp.asarray(parts["scales"])
    if kind_of(parts) == "int8":
        return (codes.astype(jnp.float32) * scales[None, :]).astype(dtype)
    values = _choose(jnp.stack([codes >> 4, codes & 15], axis=1), NF4)
    over = jnp.repeat(jnp.asarray(parts["blocks"]), OF_SCALES, total_repeat_length=scales.size)
    largest = jnp.take(jnp.asarray(dynamic_map()), scales.astype(jnp.int32)) * over.reshape(scales.shape)
    largest = (largest + parts["offset"]).T
    blocked = values.reshape(-1, BLOCK, codes.shape[1]) * largest[:, None, :]
    return blocked.reshape(-1, codes.shape[1])[:inputs].astype(dtype)


@functools.cache
def dynamic_map() -> np.ndarray:
    """The 256 values of 8-bit dynamic tree quantisation, ascending (Dettmers 2016, section 3).

    A sign, zeros that count a power of ten from 1 to 10⁻⁶, and the rest of the byte for a linear fraction.
    """
    values = [0.0, 1.0]
    for digits in range(7):
        ends = np.linspace(0.1, 1.0, 2**digits + 1)
        middle = 10.0 ** (digits - 6) * (ends[:-1] + ends[1:]) / 2
        values += [*middle, *-middle]
    return np.sort(np.array(values, np.float32))


def nearest(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """uint8 index of the value of an ascending table that is nearest to each number."""
    return np.searchsorted((table[:-1] + table[1:]) / 2, x).astype(np.uint8)


def _eight_bits(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a vector in the dynamic map, and the largest of each 256."""
    padded = np.pad(x, (0, -len(x) % OF_SCALES)).reshape(-1, OF_SCALES)
    largest = np.abs(padded).max(axis=1)
    codes = nearest(padded / np.where(largest == 0, 1, largest)[:, None], dynamic_map())
    return codes.reshape(-1)[: len(x)], largest


def _choose(index: jax.Array, table: tuple[float, ...]) -> jax.Array:
    """`table[index]` by selects: a gather out of 16 values is slow on a TPU."""
    level: list[Any] = [jnp.float32(value) for value in table]
    bit = 0
    while len(level) > 1:
        odd = (index >> bit) & 1 == 1
        level = [jnp.where(odd, high, low) for low, high in zip(level[::2], level[1::2], strict=True)]
        bit += 1
    return level[0]


def fetched(parts: Mapping[str, Any], fetch: Callable[..., jax.Array] | None, first: str, out: str) -> Any:
    """The parts of a weight, each fetched from the devices where it lies (`nn.axes.Fetch`)."""
    if fetch is None:
        return dict(parts)
    names = axes(first, out, kind_of(parts))
    return {name: fetch(part, names[name], part.dtype) for name, part in parts.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def made(parts: dict[str, Any], inputs: int, dtype: DTypeLike) -> jax.Array:
    """`dequantise` for a weight that is not trained; a policy of remat sees one operation, named `MADE`."""
    return checkpoint_name(dequantise(parts, inputs, dtype), MADE)


def _made_forward(parts: dict[str, Any], inputs: int, dtype: DTypeLike) -> tuple[jax.Array, dict[str, Any]]:
    return made(parts, inputs, dtype), parts


def _made_backward(inputs: int, dtype: DTypeLike, parts: dict[str, Any], cotangent: jax.Array) -> Any:
    raise TypeError("weights in few bits have no gradient: train adapters on them")


made.defvjp(_made_forward, _made_backward)
