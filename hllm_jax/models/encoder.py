"""The encoder: BERT (Devlin et al. 2019), RoBERTa, ALBERT, and every family that is a spec of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.models.block import Context, apply_layers, dtypes, make_layers
from hllm_jax.models.config import Execution
from hllm_jax.models.decoder import check_inputs, restarting_positions, rope_of
from hllm_jax.models.heads import HEADS
from hllm_jax.models.spec import EncoderConfig
from hllm_jax.nn.axes import constrain, parameter
from hllm_jax.nn.embed import Embed
from hllm_jax.nn.linear import Linear
from hllm_jax.nn.mlp import ACTIVATIONS
from hllm_jax.nn.norm import make_norm
from hllm_jax.nn.position import RelativeBias, Table, sinusoids


class EncoderOutput(NamedTuple):
    """What an encoder says; heads that the spec does not have are None, and unused ones cost nothing.

    Attributes:
        hidden: `[B, L, D]`.
        logits: float32 `[B, L, V]` of the masked-language-model head.
        pooled: `[B, D]`.
        pair_logits: float32 `[B, 2]`.
        task_logits: float32 `[B, labels]`, `[B, L, labels]` or `[B, L, 2]`, see `TaskConfig`.
    """

    hidden: jax.Array
    logits: jax.Array | None
    pooled: jax.Array | None
    pair_logits: jax.Array | None
    task_logits: jax.Array | None


class Encoder(nn.Module):
    """Tokens to a vector each, and what the heads make of them.

    Attributes:
        config: the architecture.
        execution: the computation.
    """

    config: EncoderConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        c, e = self.config, self.execution.resolve()
        kinds, E = dtypes(e), c.embedding_size
        dense: dict[str, Any] = {"std": c.init_std, "use_bias": True, **kinds}
        self.embed = Embed(c.vocab_size, E, c.init_std, **kinds)
        if c.position == "learned":
            self.position = Table(c.max_length + c.position_offset, E, c.init_std, **kinds)
        if c.position == "relative":
            buckets, distance = c.relative_buckets, c.relative_distance
            self.relative = RelativeBias(c.heads, buckets, distance, False, c.init_std, kinds["param_dtype"])
        if c.token_types:
            self.token_type = Table(c.token_types, E, c.init_std, **kinds)
        self.embed_norm = make_norm(c.norm, c.norm_eps, **kinds)
        if c.embedding is not None:
            self.widen = Linear((E,), (c.embed,), ("mlp", "embed"), **dense)
        if c.shared_layers:
            self.shared_layer = make_layers(c, e, causal=False)
        else:
            self.layers = make_layers(c, e, causal=False)
        if c.norm_placement != "post":
            self.final_norm = make_norm(c.norm, c.norm_eps, **kinds)
        if c.masked_head:
            self.masked_dense = Linear((c.embed,), (E,), ("embed", "mlp"), **dense)
            self.masked_norm = make_norm(c.norm, c.norm_eps, **kinds)
            zeros = nn.initializers.zeros
            self.masked_bias = parameter(
                self, "masked_bias", zeros, (c.vocab_size,), ("vocab",), kinds["param_dtype"]
            )
        if c.pooler:
            self.pool = Linear((c.embed,), (c.embed,), ("embed", "mlp"), **dense)
        if c.pair_head:
            self.pair = Linear((c.embed,), (2,), ("embed", "classes"), result_dtype=jnp.float32, **dense)
        if c.task is not None:
            self.task = HEADS[c.task.kind](c, e, name=f"{c.task.kind}_head")
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
    ) -> EncoderOutput:
        """Everything the model can say of rows of tokens.

        Args:
            tokens: int `[B, L]`.
            segment_ids: int `[B, L]`: documents of packed rows, 0 = padding (either side). None: a row is
                one document.
            positions: int `[B, L]`, below `max_length` (the caller checks). None: from 0 in each document.
            token_types: int `[B, L]`, below `config.token_types`; None: all 0.
            deterministic: no dropout; otherwise `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: a row longer than `max_length`, or arrays of other shapes.
        """
        c = self.config
        x = self.hidden(tokens, segment_ids, positions, token_types, deterministic)
        pooled = self.pooled(x) if c.pooler else None
        pair = None
        if c.pair_head and pooled is not None:
            pair = self.pair(self.dropout(pooled, deterministic))
        logits = self.masked(x) if c.masked_head else None
        task = self.task(x, pooled, deterministic) if c.task is not None else None
        return EncoderOutput(x, logits, pooled, pair, task)

    def hidden(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """The last hidden state `[B, L, D]`; arguments as `__call__`."""
        c = self.config
        check_inputs(
            c.max_length, tokens, segment_ids=segment_ids, positions=positions, token_types=token_types
        )
        if positions is None:
            positions = restarting_positions(tokens, segment_ids)
        x = self.embed(tokens)
        if c.token_types:
            x = x + self.token_type(jnp.zeros_like(tokens) if token_types is None else token_types)
        if c.position == "learned":
            x = x + self.position(positions + c.position_offset)
        elif c.position == "sinusoidal":
            x = x + sinusoids(positions, c.embedding_size).astype(x.dtype)
        x = self.dropout(self.embed_norm(x), deterministic)
        if c.embedding is not None:
            x = self.widen(x)
        x = constrain(x, "batch", "length", "act_embed")
        bias = None
        if c.position == "relative":
            places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
            bias = self.relative(places, places)
        context = Context(rope=rope_of(c, positions), segment_ids=segment_ids, bias=bias)
        layers = self.shared_layer if c.shared_layers else self.layers
        x, _ = apply_layers(layers, c, x, context, deterministic=deterministic)
        return self.final_norm(x) if c.norm_placement != "post" else x

    def score(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """One number for every row, float32 `[B]`: its class, where there is one. Arguments as `__call__`.

        Raises:
            ValueError: the model has another head.
        """
        task = self.config.task
        if task is None or task.kind != "sequence" or task.outputs != 1:
            raise ValueError("this encoder has no score: it needs a task of the kind sequence with one label")
        x = self.hidden(tokens, segment_ids, positions, token_types, deterministic)
        pooled = self.pooled(x) if self.config.pooler else None
        return jnp.squeeze(self.task(x, pooled, deterministic), -1)

    def masked(self, x: jax.Array) -> jax.Array:
        """Logits of the masked-language-model head: `[..., D]` -> float32 `[..., V]`."""
        x = self.masked_norm(ACTIVATIONS[self.config.activation](self.masked_dense(x)))
        bias = self.masked_bias.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return constrain(self.embed.attend(x) + bias, "batch", "length", "act_vocab")

    def pooled(self, x: jax.Array) -> jax.Array:
        """`tanh(dense(x))` of the first token of each row: `[B, L, D]` -> `[B, D]`."""
        return jnp.tanh(self.pool(x[:, 0]))
