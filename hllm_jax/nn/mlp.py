"""The feed-forward network: two matrices (Vaswani et al. 2017, eq. 2), or gated (Shazeer 2020, "SwiGLU")."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.axes import constrain
from hllm_jax.nn.config import Activation
from hllm_jax.nn.linear import Linear

#: `gelu` is exact (Hendrycks & Gimpel 2016), `gelu_tanh` its approximation, which GPT-2 and Gemma use.
ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


class MLP(nn.Module):
    """`down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))` where it is not gated."""

    embed: int
    mlp: int
    activation: Activation = "silu"
    gated: bool = True
    use_bias: bool = False
    std: float = 0.02
    down_std: float = 0.02
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        kinds = {"use_bias": self.use_bias, "dtype": self.dtype, "param_dtype": self.param_dtype}
        wide = {"inputs": (self.embed,), "outputs": (self.mlp,), "axes": ("embed", "mlp"), "std": self.std}
        if self.gated:
            self.gate = Linear(**wide, **kinds)
        self.up = Linear(**wide, **kinds)
        self.down = Linear((self.mlp,), (self.embed,), ("mlp", "embed"), self.down_std, **kinds)
        self.hidden_dropout = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """x `[B, L, D]` -> `[B, L, D]`; `deterministic`: no dropout."""
        activate = ACTIVATIONS[self.activation]
        y = activate(self.gate(x)) * self.up(x) if self.gated else activate(self.up(x))
        y = self.hidden_dropout(y, deterministic)
        return self.down(constrain(y, "batch", "length", "act_mlp"))
