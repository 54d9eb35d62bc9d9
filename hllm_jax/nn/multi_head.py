"""The attention layer: project, rotate, attend, project back."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from hllm_jax.nn.attention import Dropout, attention, cached_attention, recalling_attention
from hllm_jax.nn.axes import constrain
from hllm_jax.nn.cache import LayerCache
from hllm_jax.nn.config import Kernel, Pairing
from hllm_jax.nn.linear import Linear
from hllm_jax.nn.norm import RMSNorm
from hllm_jax.nn.rope import apply_rope


class MultiHeadAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023), of a row to itself or to another one.

    Attributes:
        embed, heads, kv_heads, head_dim: D, H, K, h.
        causal, window, softcap, scale, kernel: see `attention`.
        pairing: coordinates that RoPE turns together.
        qkv_bias, out_bias: whether the projections have a bias.
        qk_norm: eps of an RMSNorm over each head's query and key (Qwen3); None: none.
        dropout: share of probabilities zeroed while training.
        std, out_std: initialisation of query, key, value and of the output projection. Where `scale` is
            given, that of the query is divided by `scale · √h`, so that scores begin as large as with the
            usual scale (the rule of T5, which does not scale them).
    """

    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    kernel: Kernel = "auto"
    pairing: Pairing = "half"
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: float | None = None
    dropout: float = 0.0
    std: float = 0.02
    out_std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        D, H, K, h = self.embed, self.heads, self.kv_heads, self.head_dim
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inward: dict[str, Any] = {"use_bias": self.qkv_bias, **kinds}
        query_std = self.std if self.scale is None else self.std / (self.scale * math.sqrt(h))
        self.query = Linear((D,), (H, h), ("embed", "heads", "head_dim"), query_std, **inward)
        self.key = Linear((D,), (K, h), ("embed", "kv_heads", "head_dim"), self.std, **inward)
        self.value = Linear((D,), (K, h), ("embed", "kv_heads", "head_dim"), self.std, **inward)
        self.out = Linear((H, h), (D,), ("heads", "head_dim", "embed"), self.out_std, self.out_bias, **kinds)
        if self.qk_norm is not None:
            self.query_norm = RMSNorm(self.qk_norm, "head_dim", **kinds)
            self.key_norm = RMSNorm(self.qk_norm, "head_dim", **kinds)

    def __call__(
        self,
        x: jax.Array,
        *,
        rope: tuple[jax.Array, jax.Array] | None = None,
        segment_ids: jax.Array | None = None,
        prefix: jax.Array | None = None,
        bias: jax.Array | None = None,
        cache: LayerCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attend within `x`, or from `x` to the cache after `x` was appended to it.

        Args:
            x: `[B, L, D]`.
            rope: cosine and sine `[B, L, r/2]`; None: nothing is rotated.
            segment_ids: int `[B, L]`; with a cache the slots say it already.
            prefix, bias: see `attention`; with a cache, `cached_attention`.
            cache: this layer's.
            deterministic: no dropout.

        Returns:
            `[B, L, D]`, and the cache with the new keys and values.
        """
        q, (k, v) = self._queries(x), self.keys_values(x)
        if rope is not None:
            q, k = apply_rope(q, *rope, self.pairing), apply_rope(k, *rope, self.pairing)
        if cache is not None:
            cache = cache.append(k, v)
            y = cached_attention(
                q,
                *cache.read(),
                cache.slots,
                prefix=prefix,
                bias=bias,
                window=self.window,
                softcap=self.softcap,
                scale=self.scale,
            )
        else:
            y = attention(
                q,
                k,
                v,
                causal=self.causal,
                segment_ids=segment_ids,
                prefix=prefix,
                bias=bias,
                window=self.window,
                softcap=self.softcap,
                scale=self.scale,
                dropout=self._dropout(deterministic),
                kernel=self.kernel,
            )
        return self._project(y), cache

    def look(
        self,
        x: jax.Array,
        other: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        key_segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attend from `x` to another row (cross attention).

        Args:
            x: `[B, L, D]`.
            other: `[B, S, D]`.
            segment_ids, key_segment_ids: see `attention`.
            deterministic: no dropout.

        Returns:
            `[B, L, D]`.
        """
        keys, values = self.keys_values(other)
        y = attention(
            self._queries(x),
            keys,
            values,
            causal=False,
            segment_ids=segment_ids,
            key_segment_ids=key_segment_ids,
            softcap=self.softcap,
            scale=self.scale,
            dropout=self._dropout(deterministic),
            kernel=self.kernel,
        )
        return self._project(y)

    def recall(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: jax.Array | None
    ) -> jax.Array:
        """Attend from `x` to the keys and values of another row, kept for all steps of decoding.

        Args:
            x: `[B, L, D]`.
            keys, values: `[N, K, h, S]` and `[N, K, S, h]`, B a multiple of N: see `KVCache.cross`.
            segment_ids: int `[N, S]`, 0 = padding; None: there is none.

        Returns:
            `[B, L, D]`.
        """
        q = self._queries(x)
        # Rows that share what they look at are further queries of one row: it is read once for all of them.
        shared = q.reshape(keys.shape[0], -1, *q.shape[2:])
        y = recalling_attention(shared, keys, values, segment_ids, softcap=self.softcap, scale=self.scale)
        return self._project(y.reshape(q.shape))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys (not rotated) and values of a row `[B, S, D]`: twice `[B, S, K, h]`."""
        k, v = self.key(x), self.value(x)
        if self.qk_norm is not None:
            k = self.key_norm(k)
        k = constrain(k, "batch", "length", "act_kv_heads", None)
        return k, constrain(v, "batch", "length", "act_kv_heads", None)

    def _queries(self, x: jax.Array) -> jax.Array:
        q = self.query(x)
        if self.qk_norm is not None:
            q = self.query_norm(q)
        return constrain(q, "batch", "length", "act_heads", None)

    def _project(self, y: jax.Array) -> jax.Array:
        y = constrain(y, "batch", "length", "act_heads", None)
        return self.out(checkpoint_name(y, "attention"))

    def _dropout(self, deterministic: bool) -> Dropout | None:
        if deterministic or self.dropout == 0:
            return None
        return Dropout(self.dropout, self.make_rng("dropout"))
