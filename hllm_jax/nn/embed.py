"""The token embedding, which is also the output head where the two are tied."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.adapters import adapt_rows, has_adapter
from hllm_jax.nn.axes import parameter
from hllm_jax.nn.linear import table_product


class Embed(nn.Module):
    """A table `embedding [V, D]`: lookup on the way in, `attend` on the way out."""

    vocab_size: int
    embed: int
    std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        init = nn.initializers.normal(self.std)
        shape = (self.vocab_size, self.embed)
        axes = ("vocab", "embed")
        self.embedding = parameter(self, "embedding", init, shape, axes, self.param_dtype, self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens int `[B, L]` -> `[B, L, D]`; an id outside the vocabulary gives NaN, not another word."""
        x = jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(self.dtype)
        return adapt_rows(self, tokens, x) if has_adapter(self) else x

    def attend(self, x: jax.Array) -> jax.Array:
        """x `[B, L, D]` -> float32 logits `[B, L, V]`, multiplied in `dtype`, summed in float32."""
        return table_product(x.astype(self.dtype), self.embedding.astype(self.dtype), jnp.float32)
