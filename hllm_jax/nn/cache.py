"""The key/value cache: an explicit argument and result, preallocated, updated in place in a compiled loop.

It holds one slot per token of a row, in the order of the tokens; row b uses the slots `0 .. lengths[b] - 1`.
Keys are stored rotated and transposed, `[B, K, h, S]` a layer, values as `[B, K, S, h]`: both products of
attention then read them as plain matrices. (A cache of `[B, S, K, h]` is copied and transposed for each token
by XLA on CPU: five times the time at 16 rows of 512 slots.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class KVCache(struct.PyTreeNode):
    """Cache of all layers.

    Attributes:
        keys: a tuple with one `[B, K, h, S]` array per layer (unrolled model), or one stacked
            `[layers, B, K, h, S]` array (scanned model).
        values: likewise `[B, K, S, h]`.
        lengths: int32 `[B]`, tokens held per row.
        cross: keys and values of the rows that a decoder looks at, which no new token changes, laid out like
            the others: a tuple with one pair `[N, K, h, S]`, `[N, K, S, h]` per layer, or one pair of
            stacked ones; None: there is none. N divides B, and B / N neighbouring rows look at the same one.
        cross_segment_ids: int `[N, S]`, 0 where such a row is padding.
    """

    keys: Any
    values: Any
    lengths: jax.Array
    cross: Any = None
    cross_segment_ids: jax.Array | None = None

    @property
    def stacked(self) -> bool:
        """Whether the layers share one array."""
        return not isinstance(self.keys, tuple)

    @property
    def capacity(self) -> int:
        """Slots per row, S."""
        return int(jax.tree.leaves(self.values)[0].shape[-2])

    def grow(self, capacity: int) -> KVCache:
        """The cache with `capacity` slots, at least as many as it has; the new ones are empty."""
        missing = capacity - self.capacity

        def longer(axis: int, held: jax.Array) -> jax.Array:
            widths = [(0, 0)] * held.ndim
            widths[axis] = (0, missing)
            return jnp.pad(held, widths)

        keys = jax.tree.map(functools.partial(longer, -1), self.keys)
        return self.replace(keys=keys, values=jax.tree.map(functools.partial(longer, -2), self.values))

    def take(self, rows: jax.Array, cross: bool = True) -> KVCache:
        """The cache of these rows, in this order (beam search, or a prompt repeated for several samples).

        Args:
            rows: int `[N]`, indices into the batch.
            cross: false leaves what the rows look at as it is: row i of the result looks at what stands
                there for its place, so that neighbours share it (the beams of one prompt).
        """
        axis = 1 if self.stacked else 0

        def take(held: jax.Array) -> jax.Array:
            return jnp.take(held, rows, axis=axis)

        taken = self.replace(
            keys=jax.tree.map(take, self.keys),
            values=jax.tree.map(take, self.values),
            lengths=self.lengths[rows],
        )
        if not cross or self.cross is None:
            return taken
        seen = self.cross_segment_ids
        return taken.replace(
            cross=jax.tree.map(take, self.cross), cross_segment_ids=None if seen is None else seen[rows]
        )

    def of_layer(self, layer: int, slots: jax.Array) -> LayerCache:
        """What a layer sees of it; of a stacked cache, what the scan begins with (`layer` 0)."""
        if self.stacked:
            return LayerCache(self.keys, self.values, slots, jnp.full((), layer, jnp.int32), self.cross)
        cross = None if self.cross is None else self.cross[layer]
        return LayerCache(self.keys[layer], self.values[layer], slots, None, cross)

    def with_layers(self, layers: Sequence[LayerCache]) -> KVCache:
        """The cache with what the layers made of it: one each, or the one that a scan carried."""
        if self.stacked:
            return self.replace(keys=layers[-1].keys, values=layers[-1].values)
        keys, values = tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)
        return self.replace(keys=keys, values=values)

    def slots(self, tokens: jax.Array, segment_ids: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Where new tokens go: after those that are there, padding nowhere.

        Args:
            tokens: int `[B, L]`.
            segment_ids: int `[B, L]`, 0 marks padding (on either side); None: no padding.

        Returns:
            slots int32 `[B, L]`, -1 for padding, and the new lengths int32 `[B]`.
        """
        if segment_ids is None:
            valid = jnp.ones(tokens.shape, jnp.int32)
        else:
            valid = (segment_ids != 0).astype(jnp.int32)
        slots = self.lengths[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
        return jnp.where(valid == 1, slots, -1), self.lengths + jnp.sum(valid, axis=1, dtype=jnp.int32)


class LayerCache(struct.PyTreeNode):
    """What one layer sees of the cache: its own arrays, or the stacked ones and its index in them."""

    keys: jax.Array
    values: jax.Array
    slots: jax.Array  # int32 [B, L], -1 for padding
    layer: jax.Array | None = None  # int32 []
    cross: Any = None  # see `KVCache`

    @property
    def memory(self) -> tuple[jax.Array, jax.Array] | None:
        """Keys `[N, K, h, S]` and values `[N, K, S, h]` of the rows that this layer looks at."""
        if self.cross is None or self.layer is None:
            return self.cross
        index = functools.partial(jax.lax.dynamic_index_in_dim, index=self.layer, axis=0, keepdims=False)
        keys, values = self.cross
        return index(keys), index(values)

    def append(self, k: jax.Array, v: jax.Array) -> LayerCache:
        """Write new keys and values `[B, L, K, h]` to their slots; what is beyond the end is dropped."""
        capacity = self.values.shape[-2]
        rows = jnp.arange(k.shape[0], dtype=jnp.int32)[:, None]
        # A slot beyond the end is dropped; a negative one would count from the end.
        slots = jnp.where(self.slots < 0, capacity, self.slots)
        if slots.size == 1:
            # XLA on CPU makes of a single update a slice, fuses it with what reads it, and copies the whole
            # cache for each token. A second update, dropped, keeps it a scatter, which is done in place.
            slots = jnp.concatenate([slots, jnp.full_like(slots, capacity + 1)], axis=1)
            k, v = (jnp.concatenate([new, new], axis=1) for new in (k, v))
        # Indexed axes apart from each other come first in the result: [B, L, K, h], as the new ones are.
        if self.layer is None:
            keys, values = self.keys.at[rows, :, :, slots], self.values.at[rows, :, slots]
        else:
            keys = self.keys.at[self.layer, rows, :, :, slots]
            values = self.values.at[self.layer, rows, :, slots]
        return self.replace(
            keys=keys.set(k.astype(self.keys.dtype), mode="drop", unique_indices=True),
            values=values.set(v.astype(self.values.dtype), mode="drop", unique_indices=True),
        )

    def read(self) -> tuple[jax.Array, jax.Array]:
        """This layer's keys `[B, K, h, S]` and values `[B, K, S, h]`."""
        if self.layer is None:
            return self.keys, self.values
        keys = jax.lax.dynamic_index_in_dim(self.keys, self.layer, axis=0, keepdims=False)
        return keys, jax.lax.dynamic_index_in_dim(self.values, self.layer, axis=0, keepdims=False)

    def next_layer(self) -> LayerCache:
        """The same stacked cache, seen by the following layer; a layer's own arrays stay as they are."""
        if self.layer is None:
            return self
        return self.replace(layer=self.layer + 1)
