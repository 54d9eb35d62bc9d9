"""The gated feed-forward network of LLaMA (Shazeer 2020, "SwiGLU")."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.axes import constrain
from hllm_jax.nn.linear import Linear


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) · up(x))`."""

    embed: int
    mlp: int
    std: float = 0.02
    down_std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        wide = {"inputs": (self.embed,), "outputs": (self.mlp,), "axes": ("embed", "mlp"), "std": self.std}
        self.gate = Linear(**wide, **kinds)
        self.up = Linear(**wide, **kinds)
        self.down = Linear((self.mlp,), (self.embed,), ("mlp", "embed"), self.down_std, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[B, L, D]` -> `[B, L, D]`."""
        y = nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(y, "batch", "length", "act_mlp"))
