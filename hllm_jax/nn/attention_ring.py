"""Ring attention: rows whose positions lie on several devices (Liu et al. 2023, "Ring Attention").

Keys and values travel round the devices, and each one adds up what its queries see of them, with the softmax
put together from its parts (Milakov & Gimelshein 2018). The backward pass goes round again: what is kept of
the forward pass is the result and the log of its partition, never scores.

A causal mask would leave the device with the first positions idle most of the time. So inside of the ring
device i of n holds the halves i and 2n-1-i of the 2n halves of a row ("zig-zag"): then each has as much to do
in every step. Outside, the positions are in their order.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

#: A score that is hidden; finite, so that rows that see nothing stay numbers.
HIDDEN = -1e30


class Ring(NamedTuple):
    """What does not depend on the arrays.

    Attributes:
        axis: name of the mapped axis, or several.
        size: devices on it.
        causal, window, softcap, scale: see `attention`.
    """

    axis: Any
    size: int
    causal: bool
    window: int | None
    softcap: float | None
    scale: float


class Part(NamedTuple):
    """A stretch of a row.

    Attributes:
        arrays: `[B, l, …]` each.
        segments: int `[B, l]`.
        places: int `[l]`, positions in the row.
    """

    arrays: tuple[jax.Array, ...]
    segments: jax.Array
    places: jax.Array


def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    index: jax.Array,
    *,
    axis: Any,
    size: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> jax.Array:
    """As `attention`, on each device for the positions that it holds; to be mapped over `axis`.

    Args:
        q: `[B, l, H, h]`, l an even number of positions.
        k, v: `[B, l, K, h]`.
        segment_ids: int `[B, l]`.
        index: int `[1]`, the number of this device on the axis.
        axis, size: of the ring.
        causal, window, softcap, scale: see `attention`.

    Returns:
        `[B, l, H, h]` in the dtype of `q`.
    """
    ring = Ring(axis, size, causal, window, softcap, scale)
    number = index[0]
    if causal:
        q, k, v, segment_ids = (_zigzag(x, ring, number) for x in (q, k, v, segment_ids))
    y = _around(ring, q, k, v, segment_ids, number)
    return _unzigzag(y, ring, number) if causal else y


# -- the order of the positions -----------------------------------------------------------------------------


def _target(half: int, size: int) -> int:
    """The device that holds a half inside of the ring."""
    return half if half < size else 2 * size - 1 - half


def _moves(size: int, parity: int) -> list[tuple[int, int]]:
    """From device to device: the even halves (the first of each device), or the odd ones."""
    return [(half // 2, _target(half, size)) for half in range(parity, 2 * size, 2)]


def _zigzag(x: jax.Array, ring: Ring, number: jax.Array) -> jax.Array:
    """`[B, l, …]`: halves 2i and 2i + 1 -> halves i and 2n-1-i."""
    first, second = jnp.split(x, 2, axis=1)
    even = jax.lax.ppermute(first, ring.axis, _moves(ring.size, 0))
    odd = jax.lax.ppermute(second, ring.axis, _moves(ring.size, 1))
    is_even = number % 2 == 0
    return jnp.concatenate([jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)], axis=1)


def _unzigzag(x: jax.Array, ring: Ring, number: jax.Array) -> jax.Array:
    """The inverse of `_zigzag`."""
    low, high = jnp.split(x, 2, axis=1)
    is_even = number % 2 == 0
    even, odd = jnp.where(is_even, low, high), jnp.where(is_even, high, low)
    back = [[(there, here) for here, there in _moves(ring.size, parity)] for parity in (0, 1)]
    first = jax.lax.ppermute(even, ring.axis, back[0])
    second = jax.lax.ppermute(odd, ring.axis, back[1])
    return jnp.concatenate([first, second], axis=1)


def _halves(arrays: tuple[jax.Array, ...], segments: jax.Array, ring: Ring, number: jax.Array) -> list[Part]:
    """What device `number` holds inside of the ring: two halves, or the whole where nothing is causal."""
    length = segments.shape[1]
    if not ring.causal:
        return [Part(arrays, segments, number * length + jnp.arange(length))]
    half = length // 2
    parts: list[Part] = []
    for i, which in enumerate((number, 2 * ring.size - 1 - number)):
        cut = slice(i * half, (i + 1) * half)
        places = which * half + jnp.arange(half)
        parts.append(Part(tuple(x[:, cut] for x in arrays), segments[:, cut], places))
    return parts


def _pairs(
    mine: list[Part], theirs: list[Part], step: int, number: jax.Array, source: jax.Array
) -> list[tuple[Part, Part, tuple[int | jax.Array, int | jax.Array]]]:
    """What has to be multiplied in a step: queries, keys, and which halves they are.

    The second half of the queries sees the first of the keys. Of the two first halves and the two second ones
    one pair sees something, which depends on who is ahead; of one's own both see something.
    """
    if len(mine) == 1:
        return [(mine[0], theirs[0], (0, 0))]
    (low, high), (first, last) = mine, theirs
    if step == 0:
        return [(low, first, (0, 0)), (high, first, (1, 0)), (high, last, (1, 1))]
    ahead = source < number

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(ahead, a, b)

    queries, keys = jax.tree.map(choose, low, high), jax.tree.map(choose, first, last)
    which = jnp.where(ahead, 0, 1)
    return [(high, first, (1, 0)), (queries, keys, (which, which))]


# -- a block of scores --------------------------------------------------------------------------------------


def _scores(ring: Ring, queries: Part, keys: Part) -> jax.Array:
    """float32 `[B, K, G, l, s]`, `HIDDEN` where a query does not see a key."""
    q, k = queries.arrays[0], keys.arrays[0]
    B, L, H, h = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, L, K, H // K, h)
    scores = jnp.einsum("BLKGh,BSKh->BKGLS", grouped, k, preferred_element_type=jnp.float32) * ring.scale
    if ring.softcap is not None:
        scores = ring.softcap * jnp.tanh(scores / ring.softcap)
    seen = queries.segments[:, :, None] == keys.segments[:, None, :]
    if ring.causal:
        far = queries.places[:, None] - keys.places[None, :]
        near = far >= 0 if ring.window is None else (far >= 0) & (far < ring.window)
        seen &= near[None]
    return jnp.where(seen[:, None, None], scores, HIDDEN)


def _put(total: jax.Array, part: jax.Array, which: int | jax.Array, halves: int) -> jax.Array:
    """Replace a half along axis 1, the one that is said."""
    if halves == 1:
        return part
    return jax.lax.dynamic_update_slice_in_dim(total, part, which * part.shape[1], axis=1)


def _get(total: jax.Array, which: int | jax.Array, halves: int) -> jax.Array:
    size = total.shape[1] // halves
    return jax.lax.dynamic_slice_in_dim(total, which * size, size, axis=1)


# -- around the ring ----------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(
    ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, number: jax.Array
) -> jax.Array:
    return _forward(ring, q, k, v, segments, number)[0]


def _next(ring: Ring, x: Any) -> Any:
    """From every device to the one after it."""
    return jax.lax.ppermute(x, ring.axis, [(i, (i + 1) % ring.size) for i in range(ring.size)])


def _forward(
    ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, number: jax.Array
) -> tuple[jax.Array, Any]:
    B, L, H, _ = q.shape
    halves = 2 if ring.causal else 1
    mine = _halves((q,), segments, ring, number)
    most = jnp.full((B, L, H), HIDDEN, jnp.float32)
    total = jnp.zeros((B, L, H), jnp.float32)
    mixed = jnp.zeros(q.shape, jnp.float32)
    travelling = (k, v, segments)
    for step in range(ring.size):
        source = (number - step) % ring.size
        theirs = _halves(travelling[:2], travelling[2], ring, source)
        for queries, keys, (which, _) in _pairs(mine, theirs, step, number, source):
            scores = _scores(ring, queries, keys)
            rows = (B, scores.shape[3], H)
            old_most, old_total, old_mixed = (_get(x, which, halves) for x in (most, total, mixed))
            new_most = jnp.maximum(old_most, _by_head(jnp.max(scores, axis=-1), rows))
            weights = jnp.exp(scores - _by_group(new_most, scores.shape[1])[..., None])
            weights = jnp.where(scores <= HIDDEN, 0.0, weights)
            value = keys.arrays[1]
            update = jnp.einsum(
                "BKGLS,BSKh->BLKGh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
            ).reshape(*rows, -1)
            shrink = jnp.exp(old_most - new_most)
            new_total = old_total * shrink + _by_head(jnp.sum(weights, axis=-1), rows)
            most = _put(most, new_most, which, halves)
            total = _put(total, new_total, which, halves)
            mixed = _put(mixed, old_mixed * shrink[..., None] + update, which, halves)
        if step + 1 < ring.size:
            travelling = _next(ring, travelling)
    safe = jnp.where(total == 0, 1.0, total)
    y = (mixed / safe[..., None]).astype(q.dtype)
    return y, (q, k, v, segments, number, y, most + jnp.log(safe))


def _backward(ring: Ring, kept: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    q, k, v, segments, number, y, log_z = kept
    halves = 2 if ring.causal else 1
    slope = cotangent.astype(jnp.float32)
    delta = jnp.sum(slope * y.astype(jnp.float32), axis=-1)
    mine = _halves((q, slope, log_z, delta), segments, ring, number)
    of_q = jnp.zeros(q.shape, jnp.float32)
    travelling = (k, v, segments, jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    for step in range(ring.size):
        source = (number - step) % ring.size
        there_k, there_v, there_segments, of_k, of_v = travelling
        theirs = _halves((there_k, there_v), there_segments, ring, source)
        for queries, keys, (which, whose) in _pairs(mine, theirs, step, number, source):
            dq, dk, dv = _block_backward(ring, queries, keys)
            of_q = _put(of_q, _get(of_q, which, halves) + dq, which, halves)
            of_k = _put(of_k, _get(of_k, whose, halves) + dk, whose, halves)
            of_v = _put(of_v, _get(of_v, whose, halves) + dv, whose, halves)
        # One step more than forwards: the gradients come home.
        travelling = _next(ring, (there_k, there_v, there_segments, of_k, of_v))
    of_k, of_v = travelling[3:]
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), None, None


def _block_backward(ring: Ring, queries: Part, keys: Part) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of queries, keys and values, float32 (Dao et al. 2022, appendix B.4)."""
    q, slope, log_z, delta = queries.arrays
    k, v = keys.arrays
    scores = _scores(ring, queries, keys)
    K = k.shape[2]
    weights = jnp.exp(scores - _by_group(log_z, K)[..., None])
    weights = jnp.where(scores <= HIDDEN, 0.0, weights)
    B, L, H, h = q.shape
    grouped = slope.reshape(B, L, K, H // K, h)
    of_v = jnp.einsum("BKGLS,BLKGh->BSKh", weights, grouped)
    of_weights = jnp.einsum("BLKGh,BSKh->BKGLS", grouped, v.astype(jnp.float32))
    of_scores = weights * (of_weights - _by_group(delta, K)[..., None])
    if ring.softcap is not None:
        of_scores *= 1.0 - jnp.square(jnp.where(weights == 0, 0.0, scores) / ring.softcap)
    of_scores *= ring.scale
    of_q = jnp.einsum("BKGLS,BSKh->BLKGh", of_scores, k.astype(jnp.float32)).reshape(q.shape)
    of_k = jnp.einsum("BKGLS,BLKGh->BSKh", of_scores, q.astype(jnp.float32).reshape(B, L, K, H // K, h))
    return of_q, of_k, of_v


_around.defvjp(_forward, _backward)


def _by_head(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`[B, K, G, l]` -> `[B, l, H]`."""
    return x.transpose(0, 3, 1, 2).reshape(shape)


def _by_group(x: jax.Array, groups: int) -> jax.Array:
    """`[B, l, H]` -> `[B, K, G, l]`."""
    B, L, H = x.shape
    return x.reshape(B, L, groups, H // groups).transpose(0, 2, 3, 1)
