"""The one linear map: every weight that multiplies an activation is created here.

Adapters and quantised weights are put around `Linear.__call__` (an interceptor); no layer above knows them.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.axes import parameter


class Linear(nn.Module):
    """`y = x · kernel`, contracting the last axes of `x` with the first of the kernel; no bias.

    Attributes:
        inputs: sizes of the contracted axes, e.g. `(D,)`, or `(H, h)` for the output of attention.
        outputs: sizes of the new axes, e.g. `(H, h)`.
        axes: one name per kernel axis, inputs then outputs (see `PARAMETER_AXES`).
        std: standard deviation of the normal initialisation.
        dtype: dtype of the multiplication and of the result.
        param_dtype: dtype the kernel is stored in.
        result_dtype: dtype of the result where it is not `dtype` (float32 logits of a bfloat16 model).
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    result_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., *inputs]` -> `[..., *outputs]`."""
        init = nn.initializers.normal(self.std)
        shape = (*self.inputs, *self.outputs)
        kernel = parameter(self, "kernel", init, shape, self.axes, self.param_dtype)
        n = len(self.inputs)
        # Two plain matrices: the form every backend has a fast path for.
        lead = x.shape[: x.ndim - n]
        flat = x.astype(self.dtype).reshape(*lead, math.prod(self.inputs))
        matrix = kernel.astype(self.dtype).reshape(math.prod(self.inputs), math.prod(self.outputs))
        y = jnp.matmul(flat, matrix, preferred_element_type=self.result_dtype)
        return y.reshape(*lead, *self.outputs)
