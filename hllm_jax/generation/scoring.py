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
from hllm_jax.models.decoder import Decoder

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
        L = bucket(max(map(len, batch)), model.config.max_length)
        tokens = np.zeros((min(batch_size, 1 << (len(batch) - 1).bit_length()), L), np.int32)
        lengths = np.zeros(len(tokens), np.int32)
        for i, row in enumerate(batch):
            tokens[i, : len(row)], lengths[i] = row, len(row)
        logprobs = jax.device_get(next_logprobs(model, variables, jnp.asarray(tokens), jnp.asarray(lengths)))
        for i, row in enumerate(batch):
            scores.append(Score(tokens=list(row[1:]), logprobs=logprobs[i, : len(row) - 1].tolist()))
    return scores


@functools.partial(jax.jit, static_argnames=("model",))
def next_logprobs(
    model: Decoder, variables: dict[str, Any], tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Log-probability of each token's successor: int32 `[B, L]`, `[B]` -> float32 `[B, L]`, 0 past the end.

    Logits are made for a stretch of the row at a time: all of them at once are `L · V` floats a row.
    """
    TRACES["score"] += 1
    B, L = tokens.shape
    places = jnp.arange(L, dtype=jnp.int32)[None, :]
    valid = (places < lengths[:, None]).astype(jnp.int32)
    out: Any = model.apply(variables, tokens, valid, method="hidden")
    x = out[0]
    targets = jnp.roll(tokens, -1, axis=1)
    size = next(n for n in range(min(L, CHUNK), 0, -1) if L % n == 0)

    def stretch(start: jax.Array) -> jax.Array:
        logits: Any = model.apply(
            variables, jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), method="head"
        )
        target = jax.lax.dynamic_slice_in_dim(targets, start, size, axis=1)
        taken = jnp.take_along_axis(logits, target[:, :, None], axis=2)[:, :, 0]
        return taken - jax.nn.logsumexp(logits, axis=2)

    logprobs = jax.lax.map(stretch, jnp.arange(0, L, size, dtype=jnp.int32))  # [L/size, B, size]
    logprobs = logprobs.swapaxes(0, 1).reshape(B, L)
    return jnp.where(places < lengths[:, None] - 1, logprobs, 0.0)
