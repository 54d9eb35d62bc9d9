"""The decoder-only transformer: LLaMA (Touvron et al. 2023), GPT and every family that is a spec of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.models.block import Context, apply_layers, dtypes, make_layers
from hllm_jax.models.config import Execution
from hllm_jax.models.spec import DecoderConfig, StackConfig
from hllm_jax.nn.axes import constrain, parameter
from hllm_jax.nn.cache import KVCache
from hllm_jax.nn.embed import Embed
from hllm_jax.nn.linear import Linear, product
from hllm_jax.nn.norm import make_norm
from hllm_jax.nn.position import RelativeBias, Table, sinusoids
from hllm_jax.nn.rope import rope_angles


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
        kinds = dtypes(e)
        self.embed = Embed(c.vocab_size, c.embed, c.embedding_std(c.embed_scale), **kinds)
        if c.position in ("learned", "learned_2d"):
            self.position = Table(c.max_length, c.embed, c.embedding_std(), **kinds)
        if c.position == "learned_2d":
            self.span_position = Table(c.max_length, c.embed, c.embedding_std(), **kinds)
        if c.position == "relative":
            self.relative = RelativeBias(
                c.heads,
                c.relative_buckets,
                c.relative_distance,
                True,
                c.std(c.embed),
                kinds["param_dtype"],
            )
        if c.shared_layers:
            self.shared_layer = make_layers(c, e)
        else:
            self.layers = make_layers(c, e)
        if c.norm_placement != "post":
            self.final_norm = make_norm(c.norm, c.norm_eps, **kinds)
        if c.head != "logits":
            # As Stiennon et al. 2020 begin it: scores of variance 1, whatever the width.
            drawn = nn.initializers.normal(1.0 / math.sqrt(c.embed + 1))
            self.scalar = parameter(self, "score", drawn, (c.embed,), ("embed",), kinds["param_dtype"])
        if c.head != "score" and not c.tie_embeddings:
            self.untied = Linear(
                (c.embed,),
                (c.vocab_size,),
                ("embed", "vocab"),
                c.std(c.embed),
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
        prefix: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Logits of the next token at every place.

        Args:
            tokens: int `[B, L]`.
            segment_ids: int `[B, L]`: documents of packed rows, 0 = padding (either side). None: a row is
                one document. With a cache only 0 and not 0 are told apart: a row is one document.
            positions: int `[B, L]`, below `max_length` (the caller checks: values are not known while
                tracing). None: from 0 in each document, or the cache's slots. Two-dimensional ones are int
                `[B, L, 2]`: the place in the text with its blanks, and in the span that fills a blank, from
                1, which is 0 in the text itself; that is what None means.
            cache: keys and values of the tokens before; the new ones are appended in place of nothing:
                `lengths + L` must not exceed its capacity (the caller checks; what does not fit is lost).
            deterministic: no dropout; otherwise `rngs={"dropout": key}` is needed.
            prefix: bool or int `[B, L]`, tokens that all tokens of their document see (prefix LM).

        Returns:
            float32 `[B, L, V]` (finite and without meaning at padding), and the cache, None if none
            was given. A model that has the head `"score"` alone gives its scores, `[B, L, 1]`.

        Raises:
            ValueError: a row longer than `max_length`, or a cache of another layout.
        """
        x, cache = self.hidden(tokens, segment_ids, positions, cache, deterministic, prefix)
        return (self.head(x) if self.config.head != "score" else self._scored(x)[..., None]), cache

    def hidden(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
        prefix: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """As `__call__` without the head: the (normalised) last hidden state `[B, L, D]`, and the cache."""
        c = self.config
        two = c.position == "learned_2d"
        if two and positions is not None and positions.shape != (*tokens.shape, 2):
            raise ValueError(
                f"positions must be [B, L, 2] for tokens {tokens.shape}, got {positions.shape}: this model "
                "has a place in the text and one in the span"
            )
        flat = positions[..., 0] if two and positions is not None else positions
        check_inputs(c.max_length, tokens, segment_ids=segment_ids, positions=flat)
        check_cache(tokens, cache, self.execution.scan_layers)
        slots, lengths = cache.slots(tokens, segment_ids) if cache is not None else (None, None)
        if flat is None:
            flat = jnp.maximum(slots, 0) if slots is not None else restarting_positions(tokens, segment_ids)
        x = self.embed(tokens)
        if c.embed_scale is not None:
            x = x * jnp.asarray(c.embed_scale, x.dtype)
        if c.position in ("learned", "learned_2d"):
            x = x + self.position(flat)
        elif c.position == "sinusoidal":
            x = x + sinusoids(flat, c.embed).astype(x.dtype)
        if two:
            x = x + self.span_position(jnp.zeros_like(flat) if positions is None else positions[..., 1])
        x = self.dropout(constrain(x, "batch", "length", "act_embed"), deterministic)
        bias = None
        if c.position == "relative":
            places = jnp.arange(tokens.shape[1] if cache is None else cache.capacity, dtype=jnp.int32)[None]
            bias = self.relative(places if slots is None else slots, places)
        context = Context(rope=rope_of(c, flat), segment_ids=segment_ids, prefix=prefix, bias=bias)
        layers = self.shared_layer if c.shared_layers else self.layers
        x, cache = apply_layers(layers, c, x, context, cache, slots, deterministic)
        if cache is not None:
            cache = cache.replace(lengths=lengths)
        return self.final_norm(x) if c.norm_placement != "post" else x, cache

    def head(self, x: jax.Array) -> jax.Array:
        """Hidden state `[B, L, D]` -> float32 logits `[B, L, V]`."""
        logits = self.embed.attend(x) if self.config.tie_embeddings else self.untied(x)
        return self._capped(logits)

    def score(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        deterministic: bool = True,
        prefix: jax.Array | None = None,
    ) -> jax.Array:
        """One number at every place, float32 `[B, L]`; arguments as in `__call__`.

        A value model uses all of them, a reward model that of the last token (`objectives.at_last`).

        Raises:
            ValueError: the model has no such head.
        """
        if self.config.head == "logits":
            raise ValueError("this decoder has no score: its spec says head: logits, not score or both")
        x, _ = self.hidden(tokens, segment_ids, positions, None, deterministic, prefix)
        return self._scored(x)

    def _scored(self, x: jax.Array) -> jax.Array:
        # A narrow product and a large sum: in float32, whatever the rest is computed in.
        return jnp.einsum("BLD,D->BL", x.astype(jnp.float32), self.scalar.astype(jnp.float32))

    def before_head(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        deterministic: bool = True,
        prefix: jax.Array | None = None,
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """The hidden state `[B, L, D]`, and the head for parts of it, `[B, l, D]` -> `[B, l, V]`.

        For losses that never hold all logits at once. The function closes over the weights alone (in float32,
        so that the gradients of the parts are added up in it); arguments as in `__call__`.
        """
        x, _ = self.hidden(tokens, segment_ids, positions, None, deterministic, prefix)
        tied = self.config.tie_embeddings
        dtype = x.dtype
        matrix = (self.embed.embedding.astype(dtype).T if tied else self.untied.matrix()).astype(jnp.float32)

        def head(x: jax.Array) -> jax.Array:
            return self._capped(product(x.astype(dtype), matrix.astype(dtype), jnp.float32))

        return x, head

    def _capped(self, logits: jax.Array) -> jax.Array:
        logits = constrain(logits, "batch", "length", "act_vocab")
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def rope_of(config: StackConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Cosine and sine of positions `[B, L]`, where the architecture rotates."""
    if config.position != "rope":
        return None
    return rope_angles(positions, config.rope_dims, config.rope_theta, config.rope_scaling)


def check_inputs(limit: int, tokens: jax.Array, **given: jax.Array | None) -> None:
    """Refuse arrays of other shapes than `tokens`, and rows that the model is not made for.

    Raises:
        ValueError: with the shapes, or the limit.
    """
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [B, L], got the shape {tokens.shape}")
    for name, array in given.items():
        if array is not None and array.shape != tokens.shape:
            raise ValueError(f"{name} must have the shape of tokens {tokens.shape}, got {array.shape}")
    # A packed row may be longer than its documents; only positions given by the caller can say so.
    if tokens.shape[1] > limit and given.get("positions") is None:
        raise ValueError(
            f"a row of {tokens.shape[1]} tokens is longer than the model's max_length {limit}: shorten "
            "it, or pass positions below max_length"
        )


def check_cache(tokens: jax.Array, cache: KVCache | None, scan_layers: bool) -> None:
    """Refuse a cache of another layout or batch.

    Raises:
        ValueError: with what it was made for.
    """
    if cache is None:
        return
    if cache.stacked != scan_layers:
        made, wanted = cache.stacked, scan_layers
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
    config: StackConfig,
    batch: int,
    max_length: int,
    dtype: Any = jnp.float32,
    scan_layers: bool = False,
    layers: int | None = None,
) -> KVCache:
    """An empty cache of `max_length` slots for each of `batch` rows, in the layout the model wants.

    Args:
        config: the architecture.
        batch, max_length: rows and slots.
        dtype: of keys and values.
        scan_layers: the layout.
        layers: how many keep keys and values; None: `config.layers`.

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
    n = layers or config.layers
    if scan_layers:
        return KVCache(jnp.zeros((n, *keys), dtype), jnp.zeros((n, *values), dtype), lengths)
    return KVCache(
        tuple(jnp.zeros(keys, dtype) for _ in range(n)),
        tuple(jnp.zeros(values, dtype) for _ in range(n)),
        lengths,
    )
