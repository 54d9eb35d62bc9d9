"""The key/value cache: an explicit argument and result, preallocated, updated in place in a compiled loop.

It holds one slot per token of a row, in the order of the tokens; row b uses the slots `0 .. lengths[b] - 1`.
Keys are stored rotated, `[B, K, S, h]` a layer: the order in which the attention product reads them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class KVCache:
    """Cache of all layers.

    Attributes:
        keys, values: a tuple with one `[B, K, S, h]` array per layer (unrolled model), or one stacked
            `[layers, B, K, S, h]` array (scanned model).
        lengths: int32 `[B]`, tokens held per row.
    """

    keys: Any
    values: Any
    lengths: jax.Array

    @property
    def stacked(self) -> bool:
        """Whether the layers share one array."""
        return not isinstance(self.keys, tuple)

    @property
    def capacity(self) -> int:
        """Slots per row, S."""
        return int(jax.tree.leaves(self.keys)[0].shape[-2])

    def take(self, rows: jax.Array) -> KVCache:
        """The cache of these rows, in this order (beam search, or a prompt repeated for several samples).

        Args:
            rows: int `[N]`, indices into the batch.
        """
        axis = 1 if self.stacked else 0

        def take(held: jax.Array) -> jax.Array:
            return jnp.take(held, rows, axis=axis)

        return KVCache(jax.tree.map(take, self.keys), jax.tree.map(take, self.values), self.lengths[rows])

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


@struct.dataclass
class LayerCache:
    """What one layer sees of the cache: its own arrays, or the stacked ones and its index in them."""

    keys: jax.Array
    values: jax.Array
    slots: jax.Array  # int32 [B, L], -1 for padding
    layer: jax.Array | None = None  # int32 []

    def append(self, k: jax.Array, v: jax.Array) -> tuple[LayerCache, jax.Array, jax.Array]:
        """Write new keys and values `[B, L, K, h]` to their slots.

        Returns:
            The cache after the write, and this layer's keys and values `[B, S, K, h]`.
        """
        keys, values = self._write(self.keys, k), self._write(self.values, v)
        return LayerCache(keys, values, self.slots, self.layer), self._read(keys), self._read(values)

    def next_layer(self) -> LayerCache:
        """The same stacked cache, seen by the following layer; a layer's own arrays stay as they are."""
        if self.layer is None:
            return self
        return LayerCache(self.keys, self.values, self.slots, self.layer + 1)

    def _write(self, held: jax.Array, new: jax.Array) -> jax.Array:
        capacity = held.shape[-2]
        rows = jnp.arange(new.shape[0], dtype=jnp.int32)[:, None]
        # A slot beyond the end is dropped; a negative one would count from the end.
        slots = jnp.where(self.slots < 0, capacity, self.slots)
        # Indexed axes apart from each other come first in the result: [B, L, K, h], as `new` is.
        at = held.at[rows, :, slots] if self.layer is None else held.at[self.layer, rows, :, slots]
        return at.set(new.astype(held.dtype), mode="drop", unique_indices=True)

    def _read(self, held: jax.Array) -> jax.Array:
        if self.layer is not None:
            held = jax.lax.dynamic_index_in_dim(held, self.layer, axis=0, keepdims=False)
        return held.swapaxes(1, 2)
