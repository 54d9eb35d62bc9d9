"""The decoder-only transformer that every family is a spec of (Touvron et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.models.config import DecoderConfig, Execution
from hllm_jax.nn.axes import constrain
from hllm_jax.nn.cache import KVCache, LayerCache
from hllm_jax.nn.embed import Embed
from hllm_jax.nn.linear import Linear
from hllm_jax.nn.mlp import SwiGLU
from hllm_jax.nn.norm import RMSNorm
from hllm_jax.nn.rope import rope_angles
from hllm_jax.nn.self_attention import SelfAttention

#: Collections with one entry per layer beside the weights (adapters live in `lora`).
LAYERED: dict[Any, Any] = {"params": 0, "lora": 0, "intermediates": 0}


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Attributes:
        config: the architecture.
        execution: the computation, with its dtype resolved.
        window: of this layer, None for all.
    """

    config: DecoderConfig
    execution: Execution
    window: int | None = None

    def setup(self) -> None:
        c, e = self.config, self.execution
        kinds: Any = {"dtype": jnp.dtype(e.dtype), "param_dtype": jnp.dtype(e.param_dtype)}
        # Each block adds two terms to the residual stream: their variance is kept flat over depth.
        into_residual = c.init_std / math.sqrt(2 * c.layers)
        self.attention_norm = RMSNorm(eps=c.norm_eps, **kinds)
        self.attention = SelfAttention(
            embed=c.embed,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_size,
            pairing=c.rope_pairing,
            window=self.window,
            softcap=c.attention_softcap,
            kernel=e.attention,
            std=c.init_std,
            out_std=into_residual,
            **kinds,
        )
        self.mlp_norm = RMSNorm(eps=c.norm_eps, **kinds)
        self.mlp = SwiGLU(c.embed, c.mlp_size, c.init_std, into_residual, **kinds)
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array | None,
        cache: LayerCache | None,
        deterministic: bool,
    ) -> tuple[jax.Array, LayerCache | None]:
        """x `[B, L, D]` -> `[B, L, D]` and the cache with the new tokens in it."""
        y, cache = self.attention(self.attention_norm(x), rope, segment_ids, cache)
        x = constrain(x + self.dropout(y, deterministic), "batch", "length", "act_embed")
        y = self.mlp(self.mlp_norm(x))
        x = constrain(x + self.dropout(y, deterministic), "batch", "length", "act_embed")
        return x, cache


class Period(nn.Module):
    """The blocks of one period of a pattern longer than one: what the scan repeats (`layers/block_0/…`)."""

    config: DecoderConfig
    execution: Execution

    def setup(self) -> None:
        self.block = [
            _block(self.config, self.execution, i) for i in range(len(self.config.attention_pattern))
        ]

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array | None,
        cache: LayerCache | None,
        deterministic: bool,
    ) -> tuple[jax.Array, LayerCache | None]:
        """As `Block`; a stacked cache comes back pointing at the layer after this period."""
        for i, block in enumerate(self.block):
            x, cache = block(x, rope, segment_ids, cache, deterministic)
            if cache is not None and i + 1 < len(self.block):
                cache = cache.next_layer()
        return x, cache


class Decoder(nn.Module):
    """Tokens to logits.

    `model.apply({"params": p}, tokens, …)` is pure: the KV cache is an argument and a result.

    Attributes:
        config: the architecture.
        execution: the computation.
    """

    config: DecoderConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        c, e = self.config, self.execution.resolve()
        kinds: Any = {"dtype": jnp.dtype(e.dtype), "param_dtype": jnp.dtype(e.param_dtype)}
        self.embed = Embed(c.vocab_size, c.embed, c.init_std, **kinds)
        if not e.scan_layers:
            self.layers = [_block(c, e, i) for i in range(c.layers)]
        elif len(c.attention_pattern) == 1:
            self.layers = _block(c, e, 0)
        else:
            self.layers = Period(c, e)
        self.final_norm = RMSNorm(eps=c.norm_eps, **kinds)
        if not c.tie_embeddings:
            self.untied = Linear(
                (c.embed,),
                (c.vocab_size,),
                ("embed", "vocab"),
                c.init_std,
                result_dtype=jnp.float32,
                name="head",
                **kinds,
            )
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """Logits of the next token at every place.

        Args:
            tokens: int `[B, L]`.
            segment_ids: int `[B, L]`: documents of packed rows, 0 = padding (either side). None: a row is
                one document. With a cache only 0 and not 0 are told apart: a row is one document.
            positions: int `[B, L]` for RoPE, below `max_length` (the caller checks: values are not known
                while tracing). None: from 0 in each document, or the cache's slots.
            cache: keys and values of the tokens before; the new ones are appended in place of nothing:
                `lengths + L` must not exceed its capacity (the caller checks; what does not fit is lost).
            deterministic: no dropout; otherwise `rngs={"dropout": key}` is needed.

        Returns:
            float32 `[B, L, V]` (finite and without meaning at padding), and the cache, None if none
            was given.

        Raises:
            ValueError: a row longer than `max_length`, or a cache of another layout.
        """
        x, cache = self.hidden(tokens, segment_ids, positions, cache, deterministic)
        return self.head(x), cache

    def hidden(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """As `__call__` without the head: the normalised last hidden state `[B, L, D]`, and the cache."""
        c = self.config
        self._check(tokens, segment_ids, positions, cache)
        slots, lengths = cache.slots(tokens, segment_ids) if cache is not None else (None, None)
        if positions is None:
            positions = (
                jnp.maximum(slots, 0) if slots is not None else restarting_positions(tokens, segment_ids)
            )
        rope = rope_angles(positions, c.head_size, c.rope_theta)
        x = constrain(self.embed(tokens), "batch", "length", "act_embed")
        x = self.dropout(x, deterministic)
        if self.execution.scan_layers:
            x, held = self._scanned(x, rope, segment_ids, cache, slots, deterministic)
        else:
            x, held = self._unrolled(x, rope, segment_ids, cache, slots, deterministic)
        if lengths is not None:
            cache = KVCache(held[0], held[1], lengths)
        return self.final_norm(x), cache

    def head(self, x: jax.Array) -> jax.Array:
        """Normalised hidden state `[B, L, D]` -> float32 logits `[B, L, V]`."""
        logits = self.embed.attend(x) if self.config.tie_embeddings else self.untied(x)
        logits = constrain(logits, "batch", "length", "act_vocab")
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _unrolled(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array | None,
        cache: KVCache | None,
        slots: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, Any]:
        keys: list[jax.Array] = []
        values: list[jax.Array] = []
        for i, block in enumerate(self.layers):
            held = None
            if cache is not None and slots is not None:
                held = LayerCache(cache.keys[i], cache.values[i], slots)
            x, held = block(x, rope, segment_ids, held, deterministic)
            if held is not None:
                keys.append(held.keys)
                values.append(held.values)
        return x, (tuple(keys), tuple(values))

    def _scanned(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array | None,
        cache: KVCache | None,
        slots: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, Any]:
        # The stacked cache is carried, not scanned over: a carry is updated in place, while an output of the
        # scan would be a second copy of all of it.
        held = None
        if cache is not None and slots is not None:
            held = LayerCache(cache.keys, cache.values, slots, jnp.zeros((), jnp.int32))

        def body(layers: Any, carry: Any) -> tuple[Any, None]:
            x, held = carry
            x, held = layers(x, rope, segment_ids, held, deterministic)
            return (x, None if held is None else held.next_layer()), None

        scan = nn.scan(
            body,
            variable_axes=LAYERED,
            split_rngs={"params": True, "dropout": True},
            length=self.config.layers // len(self.config.attention_pattern),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        (x, held), _ = scan(self.layers, (x, held))
        return x, None if held is None else (held.keys, held.values)

    def _check(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None,
        positions: jax.Array | None,
        cache: KVCache | None,
    ) -> None:
        limit = self.config.max_length
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [B, L], got the shape {tokens.shape}")
        for name, given in (("segment_ids", segment_ids), ("positions", positions)):
            if given is not None and given.shape != tokens.shape:
                raise ValueError(f"{name} must have the shape of tokens {tokens.shape}, got {given.shape}")
        # A packed row may be longer than its documents; only positions given by the caller can say so.
        if tokens.shape[1] > limit and positions is None:
            raise ValueError(
                f"a row of {tokens.shape[1]} tokens is longer than the model's max_length {limit}: shorten "
                "it, or pass positions below max_length"
            )
        if cache is None:
            return
        if cache.stacked != self.execution.scan_layers:
            made, wanted = cache.stacked, self.execution.scan_layers
            raise ValueError(f"the cache was made for scan_layers={made}, the model has scan_layers={wanted}")
        if cache.lengths.shape[0] != tokens.shape[0]:
            raise ValueError(f"the cache holds {cache.lengths.shape[0]} rows, tokens have {tokens.shape[0]}")


def restarting_positions(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Positions that count from 0 in each run of one segment id: int32 `[B, L]`."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :], tokens.shape)
    if segment_ids is None:
        return places
    first = jnp.ones((tokens.shape[0], 1), bool)
    starts = jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    return places - jax.lax.cummax(jnp.where(starts, places, 0), axis=1)


def init_cache(
    config: DecoderConfig,
    batch: int,
    max_length: int,
    dtype: Any = jnp.float32,
    scan_layers: bool = False,
) -> KVCache:
    """An empty cache of `max_length` slots for each of `batch` rows, in the layout the model wants.

    Raises:
        ValueError: more slots than the model has positions.
    """
    if max_length > config.max_length:
        raise ValueError(
            f"a cache of {max_length} slots is longer than the model's max_length {config.max_length}"
        )
    keys = (batch, config.kv_heads, config.head_size, max_length)
    values = (batch, config.kv_heads, max_length, config.head_size)
    lengths = jnp.zeros((batch,), jnp.int32)
    n = config.layers
    if scan_layers:
        return KVCache(jnp.zeros((n, *keys), dtype), jnp.zeros((n, *values), dtype), lengths)
    layers = range(n)
    return KVCache(
        tuple(jnp.zeros(keys, dtype) for _ in layers),
        tuple(jnp.zeros(values, dtype) for _ in layers),
        lengths,
    )


def _block(config: DecoderConfig, execution: Execution, layer: int) -> Any:
    """The block of a layer, wrapped so that its backward pass computes again what `remat` says."""
    window = config.layer_window(layer)
    if execution.remat == "none":
        return Block(config, execution, window)
    policy = None
    if execution.remat == "selective":
        policies = jax.checkpoint_policies
        policy = policies.save_from_both_policies(
            policies.checkpoint_dots_with_no_batch_dims, policies.save_only_these_names("attention")
        )
    # Inside a scan nothing can be merged across iterations, so the barrier against merging is not needed.
    block: Any = nn.remat(Block, policy=policy, prevent_cse=not execution.scan_layers, static_argnums=(5,))
    return block(config, execution, window)
