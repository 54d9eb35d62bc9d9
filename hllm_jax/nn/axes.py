"""What the axes of parameters and activations are called; `parallel/` decides where each name goes.

Parameters and activations have separate names, because one mesh axis may hold the `embed` axis of the
weights (ZeRO-3) while the `embed` axis of the activations stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
from jax.typing import DTypeLike

#: Axes of parameters: set where a parameter is created (`nn.with_logical_partitioning`).
PARAMETER_AXES = (
    "layers",
    "vocab",
    "embed",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "positions",
    "buckets",
    "classes",
)

#: Axes of activations: set by `constrain`.
ACTIVATION_AXES = ("batch", "length", "act_embed", "act_heads", "act_kv_heads", "act_mlp", "act_vocab")


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: DTypeLike,
) -> jax.Array:
    """Declare a parameter of `module`, its axes named once and for all.

    Args:
        module: the Linen module, in `setup` or a compact method.
        name: last part of the path.
        init: initialiser `(key, shape, dtype)`.
        shape: one size per axis.
        axes: entries of `PARAMETER_AXES`, one per axis; a scan puts `layers` in front.
        dtype: it is stored in.
    """
    assert len(shape) == len(axes), (name, shape, axes)
    return cast("jax.Array", module.param(name, nn.with_logical_partitioning(init, axes), shape, dtype))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` laid out as the active rules say for these axes; unchanged where no mesh or rule is active.

    Args:
        x: array with one axis per name.
        names: entries of `ACTIVATION_AXES`, or None for an axis that no rule may split.
    """
    assert x.ndim == len(names), (x.shape, names)
    return cast("jax.Array", nn.with_logical_constraint(x, names))
