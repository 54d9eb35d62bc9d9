"""Encoder and decoder: the Transformer (Vaswani et al. 2017), T5, and every family that is a spec of it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.models.block import Context, apply_layers, dtypes, make_layers
from hllm_jax.models.config import Execution
from hllm_jax.models.decoder import check_cache, check_inputs, init_cache, restarting_positions, rope_of
from hllm_jax.models.spec import EncoderDecoderConfig
from hllm_jax.nn.axes import constrain, parameter
from hllm_jax.nn.cache import KVCache
from hllm_jax.nn.embed import Embed
from hllm_jax.nn.linear import Linear
from hllm_jax.nn.norm import make_norm
from hllm_jax.nn.position import RelativeBias, Table, sinusoids


class Side(nn.Module):
    """One of the two stacks, with its table of relative positions and the norm after it.

    Attributes:
        config: the architecture.
        execution: the computation, with its dtype resolved.
        decoder: looks back only, and at the other side.
    """

    config: EncoderDecoderConfig
    execution: Execution
    decoder: bool = False

    def setup(self) -> None:
        c, e = self.config, self.execution
        kinds = dtypes(e)
        if c.position == "relative":
            self.relative = RelativeBias(
                c.heads,
                c.relative_buckets,
                c.relative_distance,
                self.decoder,
                c.std(c.embed),
                kinds["param_dtype"],
            )
        self.layers = make_layers(c, e, self.count, causal=self.decoder, cross=self.decoder)
        if c.norm_placement != "post":
            self.final_norm = make_norm(c.norm, c.norm_eps, **kinds)
            self.dropout = nn.Dropout(c.dropout)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.config.depth if self.decoder else self.config.layers

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cache: KVCache | None = None,
        slots: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """`[B, L, D]` -> `[B, L, D]`, and the cache with the new tokens; see `apply_layers`."""
        c = self.config
        if c.position == "relative":
            places = jnp.arange(x.shape[1] if cache is None else cache.capacity, dtype=jnp.int32)[None]
            context = context._replace(bias=self.relative(places if slots is None else slots, places))
        x, cache = apply_layers(self.layers, c, x, context, cache, slots, deterministic, self.count)
        if c.norm_placement != "post":
            x = self.dropout(self.final_norm(x), deterministic)
        return x, cache

    def remember(self, encoded: jax.Array) -> Any:
        """Keys and values of the encoder's output `[B, S, D]` for each layer: `KVCache.cross`."""
        if not isinstance(self.layers, nn.Module):
            return tuple(block.remember(encoded) for block in self.layers)

        def body(layers: Any, carry: tuple[()]) -> tuple[tuple[()], Any]:
            return carry, layers.remember(encoded)

        scan = nn.scan(body, variable_axes={"params": 0, "lora": 0}, length=self.count)
        return scan(self.layers, ())[1]


class EncoderDecoder(nn.Module):
    """Two rows of tokens to the logits of the second.

    Attributes:
        config: the architecture.
        execution: the computation.
    """

    config: EncoderDecoderConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        c, e = self.config, self.execution.resolve()
        kinds = dtypes(e)
        self.embed = Embed(c.vocab_size, c.embed, c.embedding_std(c.embed_scale), **kinds)
        if c.position == "learned":
            self.position = Table(c.max_length, c.embed, c.embedding_std(), **kinds)
        self.encoder = Side(c, e)
        self.decoder = Side(c, e, decoder=True)
        if not c.tie_embeddings:
            self.untied = Linear(
                (c.embed,),
                (c.vocab_size,),
                ("embed", "vocab"),
                c.std(c.embed),
                result_dtype=jnp.float32,
                name="head",
                **kinds,
            )
        if c.logit_bias:
            zeros = nn.initializers.zeros
            self.bias = parameter(
                self, "logit_bias", zeros, (c.vocab_size,), ("vocab",), kinds["param_dtype"]
            )
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        decoder_tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, None]:
        """Logits of the next token at every place of the decoder's row.

        Args:
            tokens: int `[B, S]`, what is read.
            decoder_tokens: int `[B, L]`, what is written, beginning with `config.decoder_start`.
            segment_ids, decoder_segment_ids: int `[B, S]` and `[B, L]`: segment i of the decoder sees segment
                i of the encoder, 0 = padding. None: a row is one document; give both or none to pack.
            positions, decoder_positions: int `[B, S]` and `[B, L]`; None: from 0 in each document.
            deterministic: no dropout; otherwise `rngs={"dropout": key}` is needed.

        Returns:
            float32 `[B, L, V]`, and no cache.

        Raises:
            ValueError: a row longer than `max_length`, or arrays of other shapes.
        """
        given = (segment_ids, decoder_segment_ids, positions, decoder_positions, deterministic)
        return self.head(self.states(tokens, decoder_tokens, *given)), None

    def states(
        self,
        tokens: jax.Array,
        decoder_tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """As `__call__` without the head: the decoder's last hidden state `[B, L, D]`."""
        encoded = self.encode(tokens, segment_ids, positions, deterministic)
        if segment_ids is None and decoder_segment_ids is not None:
            segment_ids = jnp.ones_like(tokens)
        return self._decode(
            decoder_tokens,
            decoder_segment_ids,
            decoder_positions,
            None,
            deterministic,
            encoded,
            segment_ids,
        )[0]

    def encode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """The encoder's output `[B, S, D]`."""
        check_inputs(self.config.max_length, tokens, segment_ids=segment_ids, positions=positions)
        if positions is None:
            positions = restarting_positions(tokens, segment_ids)
        x = self._embedded(tokens, positions, deterministic)
        context = Context(rope=rope_of(self.config, positions), segment_ids=segment_ids)
        return self.encoder(x, context, deterministic=deterministic)[0]

    def cache(self, encoded: jax.Array, segment_ids: jax.Array | None, capacity: int) -> KVCache:
        """A cache of `capacity` empty slots a row that remembers what the decoder looks at.

        Args:
            encoded: `[B, S, D]`.
            segment_ids: int `[B, S]`, 0 = padding; None: there is none.
            capacity: tokens that the decoder may write.
        """
        c, e = self.config, self.execution.resolve()
        empty = init_cache(c, encoded.shape[0], capacity, jnp.dtype(e.dtype), e.scan_layers, c.depth)
        seen = None if segment_ids is None else (segment_ids != 0).astype(jnp.int32)
        return empty.replace(cross=self.decoder.remember(encoded), cross_segment_ids=seen)

    def hidden(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """As `Decoder.hidden`: new tokens of the decoder, after those of a cache that `cache` made."""
        if cache is None or cache.cross is None:
            raise ValueError("decoding needs a cache that remembers the encoder's output (method `cache`)")
        return self._decode(
            tokens, segment_ids, positions, cache, deterministic, None, cache.cross_segment_ids
        )

    def head(self, x: jax.Array) -> jax.Array:
        """Hidden state of the decoder `[B, L, D]` -> float32 logits `[B, L, V]`."""
        c = self.config
        if c.scale_logits:
            x = x * jnp.asarray(c.embed**-0.5, x.dtype)
        logits = self.embed.attend(x) if c.tie_embeddings else self.untied(x)
        if c.logit_bias:
            logits = logits + self.bias.astype(jnp.float32)[None, None, :]
        return constrain(logits, "batch", "length", "act_vocab")

    def _decode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None,
        positions: jax.Array | None,
        cache: KVCache | None,
        deterministic: bool,
        encoded: jax.Array | None,
        encoded_segment_ids: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        check_inputs(self.config.max_length, tokens, segment_ids=segment_ids, positions=positions)
        check_cache(tokens, cache, self.execution.scan_layers)
        slots, lengths = cache.slots(tokens, segment_ids) if cache is not None else (None, None)
        if positions is None:
            positions = (
                jnp.maximum(slots, 0) if slots is not None else restarting_positions(tokens, segment_ids)
            )
        context = Context(
            rope=rope_of(self.config, positions),
            segment_ids=segment_ids,
            encoded=encoded,
            encoded_segment_ids=encoded_segment_ids,
        )
        x = self._embedded(tokens, positions, deterministic)
        x, cache = self.decoder(x, context, cache, slots, deterministic)
        return x, None if cache is None else cache.replace(lengths=lengths)

    def _embedded(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config
        x = self.embed(tokens)
        if c.embed_scale is not None:
            x = x * jnp.asarray(c.embed_scale, x.dtype)
        if c.position == "learned":
            x = x + self.position(positions)
        elif c.position == "sinusoidal":
            x = x + sinusoids(positions, c.embed).astype(x.dtype)
        return self.dropout(constrain(x, "batch", "length", "act_embed"), deterministic)
