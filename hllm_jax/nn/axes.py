"""What the axes of parameters and activations are called; `parallel/` decides where each name goes.

Parameters and activations have separate names, because one mesh axis may hold the `embed` axis of the
weights (ZeRO-3) while the `embed` axis of the activations stays whole.
"""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax

#: Axes of parameters: set where a parameter is created (`nn.with_logical_partitioning`).
PARAMETER_AXES = ("layers", "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp")

#: Axes of activations: set by `constrain`.
ACTIVATION_AXES = ("batch", "length", "act_embed", "act_heads", "act_kv_heads", "act_mlp", "act_vocab")


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` laid out as the active rules say for these axes; unchanged where no mesh or rule is active.

    Args:
        x: array with one axis per name.
        names: entries of `ACTIVATION_AXES`, or None for an axis that no rule may split.
    """
    assert x.ndim == len(names), (x.shape, names)
    return cast("jax.Array", nn.with_logical_constraint(x, names))
