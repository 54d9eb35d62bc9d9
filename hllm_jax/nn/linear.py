"""The one linear map: every weight that multiplies an activation is created here.

Adapters are applied here, where the variables hold one (`nn/adapters.py`); no layer above knows them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.adapters import adapt, has_adapter, whole_matrix
from hllm_jax.nn.axes import parameter
from hllm_jax.nn.target import target_platform

#: Terms that are summed one after another where the highest precision is asked for on a CPU.
STRETCH = 64

#: On a CPU, a table times up to so many rows is done in this many parts, with the table on the left.
FEW, PARTS = 128, 2


class Linear(nn.Module):
    """`y = x · kernel + bias`, contracting the last axes of `x` with the first of the kernel.

    Attributes:
        inputs: sizes of the contracted axes, e.g. `(D,)`, or `(H, h)` for the output of attention.
        outputs: sizes of the new axes, e.g. `(H, h)`.
        axes: one name per kernel axis, inputs then outputs (see `PARAMETER_AXES`).
        std: standard deviation of the normal initialisation.
        use_bias: whether there is a bias `[*outputs]`, zero at initialisation.
        dtype: dtype of the multiplication and of the result.
        param_dtype: dtype the kernel is stored in.
        result_dtype: dtype of the result where it is not `dtype` (float32 logits of a bfloat16 model).
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    std: float = 0.02
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    result_dtype: DTypeLike | None = None

    def setup(self) -> None:
        init, zeros = nn.initializers.normal(self.std), nn.initializers.zeros
        shape, n = (*self.inputs, *self.outputs), len(self.inputs)
        self.kernel = parameter(self, "kernel", init, shape, self.axes, self.param_dtype, self.dtype)
        if self.use_bias:
            self.bias = parameter(self, "bias", zeros, self.outputs, self.axes[n:], self.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., *inputs]` -> `[..., *outputs]`."""
        # Two plain matrices: the form every backend has a fast path for.
        lead = x.shape[: x.ndim - len(self.inputs)]
        flat = x.astype(self.dtype).reshape(*_rows(lead), math.prod(self.inputs))
        matrix = self._matrix()
        y = product(flat, matrix, self.result_dtype)
        if has_adapter(self):
            y = adapt(self, flat, y, matrix, self._ends(), rows=lead[0] if lead else 1)
        if self.use_bias:
            y = y + self.bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y.reshape(*lead, *self.outputs)

    def matrix(self) -> jax.Array:
        """The kernel as it multiplies, with its adapter: `[I, O]` in `dtype`."""
        matrix = self._matrix()
        return whole_matrix(self, matrix, self._ends()) if has_adapter(self) else matrix

    def _matrix(self) -> jax.Array:
        return self.kernel.astype(self.dtype).reshape(math.prod(self.inputs), math.prod(self.outputs))

    def _ends(self) -> tuple[str, str]:
        return self.axes[0], self.axes[len(self.inputs)]


def product(x: jax.Array, matrix: jax.Array, result_dtype: DTypeLike | None = None) -> jax.Array:
    """`x [..., I] · matrix [I, O]`, as exact as `jax.default_matmul_precision` asks.

    `"highest"` means float32 sums everywhere: GPU and TPU know that by themselves. On a CPU it sums stretches
    of `STRETCH` terms apart from each other, which more than halves the distance of SmolLM2's logits
    from float64 (its residual stream holds values of 25,000) and costs half the speed.
    """
    *lead, terms = x.shape
    if not _exactly(x) or terms <= STRETCH:
        y = jnp.matmul(x.reshape(*_rows(lead), terms), matrix, preferred_element_type=result_dtype)
        return y.reshape(*lead, matrix.shape[1])
    missing = -terms % STRETCH
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]).reshape(*x.shape[:-1], -1, STRETCH)
    matrix = jnp.pad(matrix, ((0, missing), (0, 0))).reshape(-1, STRETCH, matrix.shape[1])

    def add(total: jax.Array, stretch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + jnp.matmul(*stretch), None

    nothing = jnp.zeros((*x.shape[:-2], matrix.shape[2]), x.dtype)
    return jax.lax.scan(add, nothing, (jnp.moveaxis(x, -2, 0), matrix))[0]


def table_product(x: jax.Array, table: jax.Array, result_dtype: DTypeLike | None = None) -> jax.Array:
    """`x [..., I] · table [O, I]ᵀ`, as `product`."""
    lead, (outputs, terms) = x.shape[:-1], table.shape
    rows = math.prod(lead)
    if target_platform() != "cpu" or _exactly(x) or rows > FEW or outputs % PARTS:
        return product(x, table.T, result_dtype)
    # XLA on CPU reads the table faster on the left of the product and in parts. Of one row too: its plain
    # product is a loop of one core, which on some machines has half of the memory's bandwidth.
    parts = table.reshape(PARTS, -1, terms)
    few = jnp.broadcast_to(x.reshape(rows, terms), (PARTS, rows, terms))
    y = jnp.einsum("POI,PRI->POR", parts, few, preferred_element_type=result_dtype)
    return y.reshape(outputs, rows).T.reshape(*lead, outputs)


def _exactly(x: jax.Array) -> bool:
    """Whether float32 sums need help to be as exact as `"highest"` asks."""
    asked = getattr(jax.config, "jax_default_matmul_precision", None)
    return asked == "highest" and x.dtype == jnp.float32 and target_platform() == "cpu"


def _rows(lead: Sequence[int]) -> tuple[int, ...]:
    """The leading axes as the product sees them.

    On a CPU they become one: with two, XLA computes a transposed copy of what comes into the gradient of
    every weight. Elsewhere they stay apart, because each may be sharded.
    """
    return (math.prod(lead),) if target_platform() == "cpu" else tuple(lead)
