"""Sums and the one helper that turns them into means.

A mean of means over micro-batches, devices or batches of unequal token counts is not the mean over tokens.
So an objective never divides: it returns numerators and denominators, whoever splits the batch adds them up,
and `mean` divides once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

#: Name -> (numerator, denominator), float32 scalars; their quotient is the mean of that name.
Sums: TypeAlias = dict[str, tuple[jax.Array, jax.Array]]

#: A batch as the model sees it: name -> array with a leading batch axis (`LMBatch` and its kin).
Batch: TypeAlias = Mapping[str, jax.Array]

#: Linen variables: collection -> tree of arrays.
Variables: TypeAlias = Mapping[str, Any]


class Loss(Protocol):
    """An objective: the numerator of `"loss"` is differentiated; denominators depend on data alone."""

    def __call__(self, variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        """Sums over the rows of `batch`; `rng=None` means evaluation (no dropout)."""
        ...


@runtime_checkable
class WholeBatchLoss(Loss, Protocol):
    """An objective of several means. It has to see the global batch before that is split."""

    def prepare(self, batch: Batch) -> Batch:
        """The same batch with weights scaled so that one denominator serves all terms."""
        ...


def prepared(loss: Loss, batch: Batch) -> Batch:
    """The global batch as the loss wants it."""
    return loss.prepare(batch) if isinstance(loss, WholeBatchLoss) else batch


def quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, 0 where the denominator is 0; finite gradients there too."""
    empty = denominator == 0
    safe = jnp.where(empty, jnp.ones_like(denominator), denominator)
    return jnp.where(empty, jnp.zeros_like(numerator), numerator / safe)


def mean(sums: Sums) -> dict[str, jax.Array]:
    """The quotient of every entry, float32; 0 where the denominator is 0 (a batch that trains no token)."""
    return {name: quotient(numerator, denominator) for name, (numerator, denominator) in sums.items()}


def add(left: Sums, right: Sums) -> Sums:
    """Sums over two disjoint parts of a batch. Both have the same names."""
    return {name: (left[name][0] + right[name][0], left[name][1] + right[name][1]) for name in left}
