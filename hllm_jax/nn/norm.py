"""Normalisation over the last axis: root mean square, or mean and variance. Statistics are float32."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.axes import parameter
from hllm_jax.nn.config import Norm


class RMSNorm(nn.Module):
    """`x / √(mean(x²) + eps) · scale` (Zhang & Sennrich 2019, eq. 4), cast back before the product."""

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
        return y.astype(self.dtype) * _row(scale, x.ndim, self.dtype)


class LayerNorm(nn.Module):
    """`(x - mean) / √(var + eps) · scale + bias` (Ba et al. 2016, eq. 4)."""

    eps: float = 1e-5
    axis: str = "embed"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., D]` -> `[..., D]` in `dtype`."""
        shape, axes = (x.shape[-1],), (self.axis,)
        scale = parameter(self, "scale", nn.initializers.ones, shape, axes, self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, shape, axes, self.param_dtype)
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return y.astype(self.dtype) * _row(scale, x.ndim, self.dtype) + _row(bias, x.ndim, self.dtype)


NORMS: dict[Norm, type[RMSNorm] | type[LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}


def make_norm(kind: Norm, eps: float, **kinds: Any) -> RMSNorm | LayerNorm:
    """The norm of this kind; `kinds` are its dtypes."""
    return NORMS[kind](eps=eps, **kinds)


def _row(parameter: jax.Array, ndim: int, dtype: DTypeLike) -> jax.Array:
    return parameter.astype(dtype).reshape((1,) * (ndim - 1) + (-1,))
