"""How probable a model finds a text, token by token."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.generation.decode import TRACES, bucket
from hllm_jax.generation.rows import right_padded
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.encoder_decoder import EncoderDecoder

#: Places whose logits are in memory at once.
CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-likelihood of a text.

    Attributes:
        tokens: the scored tokens; the first of the row is context only.
        logprobs: natural logarithm of the probability of each, given all before it.
    """

    tokens: list[int]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """Log-likelihood of the whole, in nats."""
        return float(np.sum(self.logprobs, dtype=np.float64))


def score_tokens(
    model: Decoder, variables: dict[str, Any], rows: Sequence[Sequence[int]], batch_size: int = 8
) -> list[Score]:
    """Score rows of ids, of which the first only gives context.

    Args:
        model, variables: the decoder and `{"params": …}`.
        rows: each 1 to `max_length` ids of the vocabulary (the caller checks).
        batch_size: rows that are read together.
    """
    scores: list[Score] = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        count = min(batch_size, 1 << (len(batch) - 1).bit_length())
        tokens, lengths = padded(batch, count, model.config.max_length)
        logprobs = jax.device_get(next_logprobs(model, variables, tokens, lengths))
        for i, row in enumerate(batch):
            scores.append(Score(tokens=list(row[1:]), logprobs=logprobs[i, : len(row) - 1].tolist()))
    return scores


def score_pairs(
    model: EncoderDecoder,
    variables: dict[str, Any],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int = 8,
) -> list[Score]:
    """Score targets, given their sources; all tokens of a target are scored.

    Args:
        model, variables: the encoder-decoder and `{"params": …}`.
        pairs: ids of sources and targets, each 1 to `max_length` ids of the vocabulary (the caller checks).
        batch_size: pairs that are read together.
    """
    scores: list[Score] = []
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        rows = min(batch_size, 1 << (len(batch) - 1).bit_length())
        sources, targets = (padded(side, rows, model.config.max_length) for side in zip(*batch, strict=True))
        logprobs = jax.device_get(target_logprobs(model, variables, *sources, *targets))
        for i, (_, target) in enumerate(batch):
            scores.append(Score(tokens=list(target), logprobs=logprobs[i, : len(target)].tolist()))
    return scores


def padded(lines: Sequence[Sequence[int]], rows: int, max_length: int) -> tuple[jax.Array, jax.Array]:
    """Lists of ids in a bucket: int32 `[rows, L]` padded on the right, and their lengths `[rows]`."""
    tokens = right_padded(lines, rows, bucket(max(map(len, lines)), max_length))
    lengths = np.zeros(rows, np.int32)
    lengths[: len(lines)] = [len(line) for line in lines]
    return jnp.asarray(tokens), jnp.asarray(lengths)


@functools.partial(jax.jit, static_argnames=("model",))
def next_logprobs(
    model: Decoder, variables: dict[str, Any], tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Log-probability of each token's successor: int32 `[B, L]`, `[B]` -> float32 `[B, L]`, 0 past it."""
    TRACES["score"] += 1
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    valid = (places < lengths[:, None]).astype(jnp.int32)
    out: Any = model.apply(variables, tokens, valid, method="hidden")
    logprobs = _logprobs(model, variables, out[0], jnp.roll(tokens, -1, axis=1))
    return jnp.where(places < lengths[:, None] - 1, logprobs, 0.0)


@functools.partial(jax.jit, static_argnames=("model",))
def target_logprobs(
    model: EncoderDecoder,
    variables: dict[str, Any],
    sources: jax.Array,
    source_lengths: jax.Array,
    targets: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    """Log-probability of each token of the targets `[B, L]`, given sources `[B, S]`: float32 `[B, L]`."""
    TRACES["score"] += 1

    def valid(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return (jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]).astype(jnp.int32)

    start = jnp.full((targets.shape[0], 1), model.config.decoder_start, jnp.int32)
    read = jnp.concatenate([start, targets[:, :-1]], axis=1)
    given = (valid(sources, source_lengths), valid(targets, lengths))
    x: Any = model.apply(variables, sources, read, *given, method="states")
    return jnp.where(given[1] != 0, _logprobs(model, variables, x, targets), 0.0)


def _logprobs(
    model: Decoder | EncoderDecoder, variables: dict[str, Any], x: jax.Array, targets: jax.Array
) -> jax.Array:
    """Log-probability of the targets `[B, L]` after the states `[B, L, D]`: float32 `[B, L]`.

    Logits are made for a stretch of the row at a time: all of them at once are `L · V` floats a row.
    """
    B, L = targets.shape
    size = next(n for n in range(min(L, CHUNK), 0, -1) if L % n == 0)

    def stretch(start: jax.Array) -> jax.Array:
        logits: Any = model.apply(
            variables, jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), method="head"
        )
        target = jax.lax.dynamic_slice_in_dim(targets, start, size, axis=1)
        taken = jnp.take_along_axis(logits, target[:, :, None], axis=2)[:, :, 0]
        return taken - jax.nn.logsumexp(logits, axis=2)

    logprobs = jax.lax.map(stretch, jnp.arange(0, L, size, dtype=jnp.int32))  # [L/size, B, size]
    return logprobs.swapaxes(0, 1).reshape(B, L)
