"""Root-mean-square normalisation (Zhang & Sennrich 2019, eq. 4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.axes import parameter


class RMSNorm(nn.Module):
    """`x / √(mean(x²) + eps) · scale`; statistics in float32, cast back before the product (as LLaMA)."""

    eps: float = 1e-5
    axis: str = "embed"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., D]` -> `[..., D]` in `dtype`."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), (self.axis,), self.param_dtype)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        scale = scale.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return y.astype(self.dtype) * scale
