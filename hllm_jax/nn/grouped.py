"""Rows that belong to groups, each with a matrix of its own: how they are laid out, multiplied, and put back.

Three layouts of the same rows, with the same three methods. `Blocks` and `Sorted` drop no row and multiply
none with a matrix that is not its own; `Buffers` have a fixed number of places for each group, so that the
groups can lie on different devices, and drop the rows that find none.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp

from hllm_jax.nn.axes import constrain
from hllm_jax.nn.linear import product

#: Most rows of a block: enough that a product is bound by arithmetic, not by reading its matrix.
BLOCK = 64


class Layout(Protocol):
    """Rows in the order of their groups."""

    def spread(self, rows: jax.Array) -> jax.Array:
        """Rows `[B, R, I]` -> as the layout wants them."""
        ...

    def product(self, rows: jax.Array, kernels: jax.Array) -> jax.Array:
        """Each row times the matrix of its group; kernels `[E, I, O]`."""
        ...

    def collect(self, rows: jax.Array) -> jax.Array:
        """As laid out -> `[B, R, O]`; zeros where a row has no group or was dropped."""
        ...


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sorted by group, every group padded to whole blocks: a loop of plain products, one matrix each.

    XLA has no better form on a CPU, where `ragged_dot` multiplies every row with every matrix.

    Attributes:
        slots: int32 `[R]`, place of each row in the blocks; beyond their end for a row without a group.
        group: int32 `[M]`, of each block.
        size: rows of a block.
        batch: B; the rows of all are laid out together.
    """

    slots: jax.Array
    group: jax.Array
    size: int
    batch: int

    @classmethod
    def of(cls, groups: jax.Array, count: int) -> Blocks:
        """The layout of rows of the groups int32 `[B, R]`, each below `count`, or `count` for none."""
        flat = groups.reshape(-1)
        size = block_size(flat.size, count)
        rank, sizes = ranks(flat, count)
        blocks = -(-sizes // size)
        ends = jnp.cumsum(blocks, dtype=jnp.int32)
        # As many as the worst distribution of the rows needs.
        most = (flat.size + min(count, flat.size) * (size - 1)) // size
        places = jnp.arange(most, dtype=jnp.int32)
        group = jnp.sum((ends[None, :] <= places[:, None]).astype(jnp.int32), axis=1, dtype=jnp.int32)
        first = jnp.append(ends - blocks, jnp.int32(most))
        slots = jnp.where(flat < count, first[flat] * size + rank, most * size)
        return cls(slots, jnp.minimum(group, count - 1), size, groups.shape[0])

    def spread(self, rows: jax.Array) -> jax.Array:
        """`[B, R, I]` -> `[M, size, I]`, zeros where a block has no row."""
        flat = rows.reshape(-1, rows.shape[-1])
        places = jnp.zeros((self.group.size * self.size, rows.shape[-1]), rows.dtype)
        places = places.at[self.slots].set(flat, mode="drop", unique_indices=True)
        return places.reshape(-1, self.size, rows.shape[-1])

    def product(self, rows: jax.Array, kernels: jax.Array) -> jax.Array:
        """`[M, size, I]` -> `[M, size, O]`."""
        return block_product(rows, kernels, self.group)

    def collect(self, rows: jax.Array) -> jax.Array:
        """`[M, size, O]` -> `[B, R, O]`."""
        flat = rows.reshape(-1, rows.shape[-1])
        taken = flat.at[self.slots].get(mode="fill", fill_value=0, unique_indices=True)
        return taken.reshape(self.batch, -1, rows.shape[-1])


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Sorted by group, for `jax.lax.ragged_dot`, which a TPU computes without padding.

    Attributes:
        slots: int32 `[R]`, place of each row.
        sizes: int32 `[E]`, rows of each group.
        batch: B; the rows of all are laid out together.
    """

    slots: jax.Array
    sizes: jax.Array
    batch: int

    @classmethod
    def of(cls, groups: jax.Array, count: int) -> Sorted:
        """As `Blocks.of`."""
        flat = groups.reshape(-1)
        rank, sizes = ranks(flat, count)
        starts = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
        first = jnp.append(starts, jnp.int32(flat.size))
        return cls(jnp.where(flat < count, first[flat] + rank, flat.size), sizes, groups.shape[0])

    def spread(self, rows: jax.Array) -> jax.Array:
        """`[B, R, I]` -> `[B·R, I]`."""
        flat = rows.reshape(-1, rows.shape[-1])
        return jnp.zeros_like(flat).at[self.slots].set(flat, mode="drop", unique_indices=True)

    def product(self, rows: jax.Array, kernels: jax.Array) -> jax.Array:
        """`[B·R, I]` -> `[B·R, O]`."""
        return jax.lax.ragged_dot(rows, kernels, self.sizes)

    def collect(self, rows: jax.Array) -> jax.Array:
        """`[B·R, O]` -> `[B, R, O]`."""
        taken = rows.at[self.slots].get(mode="fill", fill_value=0, unique_indices=True)
        return taken.reshape(self.batch, -1, rows.shape[-1])


@dataclasses.dataclass(frozen=True)
class Buffers:
    """`capacity` places for each group in each row of a batch; what finds none is dropped.

    They are filled in order: a place depends on what comes before it alone, so a causal model stays causal.

    Attributes:
        slots: int32 `[B, R]`, place of each row among the `count · capacity`; beyond them if it has none.
        count: E.
        capacity: C.
    """

    slots: jax.Array
    count: int
    capacity: int

    @classmethod
    def of(cls, groups: jax.Array, count: int, capacity: int) -> Buffers:
        """The layout of rows of the groups int32 `[B, R]`, each below `count`, or `count` for none."""
        rank, _ = jax.vmap(functools.partial(ranks, count=count))(groups)
        fits = (groups < count) & (rank < capacity)
        return cls(jnp.where(fits, groups * capacity + rank, count * capacity), count, capacity)

    @property
    def kept(self) -> jax.Array:
        """bool `[B, R]`: rows that have a place."""
        return self.slots < self.count * self.capacity

    def spread(self, rows: jax.Array) -> jax.Array:
        """`[B, R, I]` -> `[B, E, C, I]`."""

        def place(slots: jax.Array, own: jax.Array) -> jax.Array:
            empty = jnp.zeros((self.count * self.capacity, own.shape[-1]), own.dtype)
            return empty.at[slots].set(own, mode="drop", unique_indices=True)

        # First each device places its own rows of the batch, then groups change places with rows.
        placed = constrain(jax.vmap(place)(self.slots, rows), "batch", None, None)
        return self._by_group(placed.reshape(rows.shape[0], self.count, self.capacity, -1))

    def product(self, rows: jax.Array, kernels: jax.Array) -> jax.Array:
        """`[B, E, C, I]` -> `[B, E, C, O]`."""
        return self._by_group(jnp.einsum("becd,edf->becf", rows, kernels))

    def collect(self, rows: jax.Array) -> jax.Array:
        """`[B, E, C, O]` -> `[B, R, O]`."""
        flat = constrain(rows.reshape(rows.shape[0], -1, rows.shape[-1]), "batch", None, None)

        def take(slots: jax.Array, own: jax.Array) -> jax.Array:
            return own.at[slots].get(mode="fill", fill_value=0, unique_indices=True)

        return jax.vmap(take)(self.slots, flat)

    def _by_group(self, rows: jax.Array) -> jax.Array:
        return constrain(rows, "expert_batch", "act_experts", None, None)


def ranks(groups: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """How many rows of its group stand before each row, and how many rows each group has.

    Args:
        groups: int32 `[R]`, each below `count`, or `count` for none.
        count: E.

    Returns:
        int32 `[R]` (without meaning where there is no group) and int32 `[E]`.
    """
    order = jnp.argsort(groups, stable=True)
    sizes = jnp.zeros(count, jnp.int32).at[groups].add(1, mode="drop")
    first = jnp.append(jnp.cumsum(sizes, dtype=jnp.int32) - sizes, jnp.int32(0))
    places = jnp.arange(groups.size, dtype=jnp.int32)
    rank = jnp.zeros_like(places).at[order].set(places - first[groups[order]], unique_indices=True)
    return rank, sizes


def block_size(rows: int, groups: int) -> int:
    """A power of two, at most `BLOCK`: small where groups are, because each pads its last block."""
    return min(BLOCK, 1 << max(0, (rows // (4 * groups)).bit_length()))


@functools.partial(jax.custom_vjp)
def block_product(blocks: jax.Array, kernels: jax.Array, group: jax.Array) -> jax.Array:
    """`blocks[m] · kernels[group[m]]`, one block after the other.

    The backward pass is written out: of a loop that reads slices of the kernels, JAX would add a gradient of
    the size of all kernels in every round.

    Args:
        blocks: `[M, b, I]`.
        kernels: `[E, I, O]`.
        group: int32 `[M]`.

    Returns:
        `[M, b, O]`.
    """

    def one(carry: tuple[()], block: tuple[jax.Array, jax.Array]) -> tuple[tuple[()], jax.Array]:
        rows, of = block
        return carry, product(rows, kernels[of])

    return jax.lax.scan(one, (), (blocks, group))[1]


def _forward(
    blocks: jax.Array, kernels: jax.Array, group: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return block_product(blocks, kernels, group), (blocks, kernels, group)


def _backward(
    saved: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    blocks, kernels, group = saved

    def one(total: jax.Array, block: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, above, of = block
        own = jnp.matmul(rows.T, above, preferred_element_type=jnp.float32)
        return total.at[of].add(own), product(above, kernels[of].T)

    start = jnp.zeros(kernels.shape, jnp.float32)
    of_kernels, of_blocks = jax.lax.scan(one, start, (blocks, gradient, group))
    return of_blocks, of_kernels.astype(kernels.dtype), None


block_product.defvjp(_forward, _backward)
