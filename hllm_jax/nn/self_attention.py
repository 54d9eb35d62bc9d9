"""The attention layer: project, rotate, attend, project back."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from hllm_jax.nn.attention import Kernel, attention, cached_attention
from hllm_jax.nn.axes import constrain
from hllm_jax.nn.cache import LayerCache
from hllm_jax.nn.linear import Linear
from hllm_jax.nn.rope import Pairing, apply_rope


class SelfAttention(nn.Module):
    """Grouped-query causal self attention with rotary positions (Ainslie et al. 2023; Su et al. 2021).

    Attributes:
        embed, heads, kv_heads, head_dim: D, H, K, h.
        pairing: coordinates that RoPE turns together.
        window, softcap, kernel: see `attention`.
        std, out_std: initialisation of query, key, value and of the output projection.
    """

    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    pairing: Pairing = "half"
    window: int | None = None
    softcap: float | None = None
    kernel: Kernel = "auto"
    std: float = 0.02
    out_std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        D, H, K, h = self.embed, self.heads, self.kv_heads, self.head_dim
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.query = Linear((D,), (H, h), ("embed", "heads", "head_dim"), self.std, **kinds)
        self.key = Linear((D,), (K, h), ("embed", "kv_heads", "head_dim"), self.std, **kinds)
        self.value = Linear((D,), (K, h), ("embed", "kv_heads", "head_dim"), self.std, **kinds)
        self.out = Linear((H, h), (D,), ("heads", "head_dim", "embed"), self.out_std, **kinds)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attend within `x`, or from `x` to the cache after `x` was appended to it.

        Args:
            x: `[B, L, D]`.
            rope: cosine and sine `[B, L, h/2]`.
            segment_ids: int `[B, L]`; with a cache the slots say it already.
            cache: this layer's.

        Returns:
            `[B, L, D]`, and the cache with the new keys and values.
        """
        q = apply_rope(self.query(x), *rope, self.pairing)
        k = apply_rope(self.key(x), *rope, self.pairing)
        v = self.value(x)
        q = constrain(q, "batch", "length", "act_heads", None)
        k = constrain(k, "batch", "length", "act_kv_heads", None)
        v = constrain(v, "batch", "length", "act_kv_heads", None)
        if cache is not None:
            cache = cache.append(k, v)
            y = cached_attention(q, *cache.read(), cache.slots, window=self.window, softcap=self.softcap)
        else:
            y = attention(
                q,
                k,
                v,
                segment_ids=segment_ids,
                window=self.window,
                softcap=self.softcap,
                kernel=self.kernel,
            )
        y = checkpoint_name(constrain(y, "batch", "length", "act_heads", None), "attention")
        return self.out(y), cache
