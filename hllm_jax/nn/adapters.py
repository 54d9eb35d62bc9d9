"""Low-rank adapters beside a weight that stays as it is (LoRA: Hu et al. 2021, equation 3).

    y = x·W + s·(x·A)·B                               W [I, O], A [I, r], B [r, O]
    y = m / ‖W + s·A·B‖ · (x·W + s·(x·A)·B)           DoRA (Liu et al. 2024, equation 5): a norm per output

The collection `lora` has the paths of `params`. Where a `Linear` or an `Embed` has a place in it, there lie

    a          [I, r]
    b          [r, O]
    scale      []      s: alpha / r, or alpha / √r (rank-stabilised: Kalajdzievski 2023)
    dropout    []      share of x that the adapter does not see where the call has a key of dropout, which is
                       what training gives and evaluation does not; only where there is dropout
    magnitude  [O]     m, only of DoRA

with `layers` in front where a scan has stacked the layers. Nothing in a model says that it has adapters: what
is in the variables is used. Several adapters are one more axis before these, `[n, I, r]`; `select` gives each
row of a batch its own of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.nn.axes import variable

#: The collection.
COLLECTION = "lora"

#: Names in it that training changes.
TRAINED = ("a", "b", "magnitude")


def has_adapter(module: nn.Module) -> bool:
    """Whether the variables hold an adapter of this module."""
    return module.has_variable(COLLECTION, "a")


def adapt(
    module: nn.Module, x: jax.Array, y: jax.Array, matrix: jax.Array, axes: tuple[str, str], rows: int
) -> jax.Array:
    """The output of a linear map with its adapter.

    Args:
        module: the map; it has an adapter.
        x: its input `[B, …, I]`, or all but the last axis as one.
        y: `x·W` without bias, in the same form.
        matrix: W `[I, O]`.
        axes: names of the (first) input and output axis of W.
        rows: B.
    """
    a, b, scale = _parts(module, axes, x.dtype)
    if module.has_variable(COLLECTION, "dropout") and module.has_rng("dropout"):
        rate = variable(module, COLLECTION, "dropout", (), jnp.float32)
        seen = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
        x = jnp.where(seen, x / (1 - rate), 0).astype(x.dtype)
    if a.ndim == 3:  # one for each row of the batch
        apart, low = y.reshape(rows, -1, y.shape[-1]), x.reshape(rows, -1, x.shape[-1]) @ a
        return _sum(apart, _rows(scale, apart), low @ b).reshape(y.shape).astype(y.dtype)
    total = _sum(y, scale, jnp.matmul(jnp.matmul(x, a), b))
    if module.has_variable(COLLECTION, "magnitude"):
        longer = _longer(module, adapted_matrix(matrix, a, b, scale), axes)
        total = total * longer.reshape(*(1,) * (y.ndim - 1), -1)
    return total.astype(y.dtype)


def adapt_rows(module: nn.Module, index: jax.Array, x: jax.Array) -> jax.Array:
    """Rows `x` `[B, L, D]` of an embedding, looked up at `index` `[B, L]`, with its adapter (A `[V, r]`)."""
    a, b, scale = _parts(module, ("vocab", "embed"), x.dtype)
    if a.ndim == 3:
        low = jnp.take_along_axis(a, index[..., None], axis=1)
        return _sum(x, _rows(scale, x), jnp.einsum("BLr,BrD->BLD", low, b)).astype(x.dtype)
    return _sum(x, scale, jnp.matmul(jnp.take(a, index, axis=0), b)).astype(x.dtype)


def whole_matrix(module: nn.Module, matrix: jax.Array, axes: tuple[str, str]) -> jax.Array:
    """W with its adapter in it, where a product by parts is not possible; dropout does not apply.

    Raises:
        ValueError: each row of the batch has another adapter.
    """
    a, b, scale = _parts(module, axes, matrix.dtype)
    if a.ndim == 3:
        raise ValueError("adapters of several rows do not go into one matrix: use the head as a whole")
    whole = adapted_matrix(matrix, a, b, scale)
    if module.has_variable(COLLECTION, "magnitude"):
        whole = whole * _longer(module, whole, axes)[None, :]
    return whole.astype(matrix.dtype)


def adapted_matrix(matrix: Any, a: Any, b: Any, scale: Any) -> Any:
    """`W + s·A·B` `[…, I, O]` in float32; all JAX or all NumPy, for which nothing is compiled."""
    a, b = a.astype("float32"), b.astype("float32")
    change = a @ b if isinstance(a, np.ndarray) else jnp.matmul(a, b, precision="highest")
    return matrix.astype("float32") + scale[..., None, None] * change


def column_norms(matrix: Any) -> Any:
    """The length of what makes each output, `[…, I, O]` -> float32 `[…, O]`; JAX or NumPy."""
    matrix = matrix.astype("float32")
    return (matrix * matrix).sum(axis=-2) ** 0.5


def select(adapters: Mapping[str, Any], ids: jax.Array) -> dict[str, Any]:
    """The collection in which row i of a batch has adapter `ids[i]`; gradients go to the adapters it chose.

    Args:
        adapters: the collection with an axis of adapters (`hllm_jax.models.lora.stack_adapters`).
        ids: int `[B]`; a negative one is no adapter, one that is too large gives NaN.
    """

    def pick(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        axis = 1 if any(getattr(entry, "key", "") == "layers" for entry in path) else 0
        none = jnp.expand_dims(ids < 0, [i for i in range(leaf.ndim) if i != axis])
        return jnp.where(none, 0, jnp.take(leaf, jnp.maximum(ids, 0), axis=axis, mode="fill"))

    return jax.tree_util.tree_map_with_path(pick, dict(adapters))


def _parts(module: nn.Module, axes: tuple[str, str], dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    several = ("adapters",) * (jnp.ndim(module.get_variable(COLLECTION, "scale")))
    a = variable(module, COLLECTION, "a", (*several, axes[0], "rank"), dtype)
    b = variable(module, COLLECTION, "b", (*several, "rank", axes[1]), dtype)
    return a, b, variable(module, COLLECTION, "scale", several, jnp.float32)


def _sum(y: jax.Array, scale: jax.Array, change: jax.Array) -> jax.Array:
    """`y + scale · change` in float32: rounded to bfloat16, a factor near 1 has steps of a percent."""
    return y.astype(jnp.float32) + scale * change.astype(jnp.float32)


def _longer(module: nn.Module, whole: jax.Array, axes: tuple[str, str]) -> jax.Array:
    """m / ‖W + s·A·B‖, float32 `[O]`; the norm is a constant for the gradient (section 4.3 of the paper)."""
    magnitude = variable(module, COLLECTION, "magnitude", axes[1:], jnp.float32)
    return magnitude / jax.lax.stop_gradient(column_norms(whole))


def _rows(scale: jax.Array, like: jax.Array) -> jax.Array:
    """A number for each row `[B]`, to be multiplied with `[B, …]`."""
    return scale.reshape(-1, *(1,) * (like.ndim - 1))
