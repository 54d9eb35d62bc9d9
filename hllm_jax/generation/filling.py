"""Writing what belongs in the blanks of a text, with a model of two-dimensional positions (GLM).

The text is read in one piece and in both directions. Then its blanks are filled from left to right, each as
`[START] t1 t2 …` until the model says `[END]`: all of these stand at the place of the blank's mask and count
from 1 in the second position (Du et al. 2022, section 2.1 and figure 2). Later blanks see earlier ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.generation.decode import known, new_cache
from hllm_jax.generation.request import Sampling
from hllm_jax.generation.rows import right_padded
from hllm_jax.generation.sampling import SamplingRows, sample, sampling_rows
from hllm_jax.models.decoder import Decoder
from hllm_jax.nn.cache import KVCache

if TYPE_CHECKING:
    from hllm_jax.data.transforms.blanks import BlankIds


class Blanks(NamedTuple):
    """Texts with blanks, padded on the right.

    Attributes:
        tokens: int32 `[B, L]`.
        lengths: int32 `[B]`.
        places: int32 `[B, N]`, where the masks stand; 0 beyond their number.
        counts: int32 `[B]`, how many, at least 1.
    """

    tokens: jax.Array
    lengths: jax.Array
    places: jax.Array
    counts: jax.Array


class _State(NamedTuple):
    """What passes from one token to the next: what is read, where, and what was written."""

    cache: KVCache
    token: jax.Array  # int32 [B]
    blank: jax.Array  # int32 [B]
    offset: jax.Array  # int32 [B], place in the span of `token`, from 1
    finished: jax.Array  # bool [B]
    seen: jax.Array  # bool [B, V]
    written: jax.Array  # int32 [B, N, max_tokens], -1 where nothing is


def infill(
    model: Decoder,
    variables: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    ids: BlankIds,
    max_tokens: int,
    sampling: Sampling = Sampling(temperature=0.0),
    seed: int = 0,
) -> list[list[list[int]]]:
    """Fill every blank of every text.

    Args:
        model: whose positions are two-dimensional.
        variables: `{"params": …}`.
        prompts: token ids with masks where something is missing, and the tokens that the model's texts begin
            with.
        ids: which ids are masks (of words, sentences and documents), begin and end a span.
        max_tokens: longest filling of one blank.
        sampling: how a token is chosen.
        seed: of its random numbers.

    Returns:
        For each text, for each of its blanks from left to right, the ids that fill it, `[END]` left out.

    Raises:
        ValueError: the model has other positions, a text has no blank or an unknown id, or the text and all
            that may be written are longer than the model's `max_length`.
    """
    config = model.config
    if config.position != "learned_2d":
        raise ValueError(
            f"positions of this model are {config.position!r}: blanks are filled by one with 'learned_2d'"
        )
    if not prompts or max_tokens < 1:
        raise ValueError(f"{len(prompts)} texts and max_tokens {max_tokens}: both must be at least 1")
    masks = {ids.mask, ids.sentence_mask, ids.document_mask}
    places = [[i for i, token in enumerate(prompt) if token in masks] for prompt in prompts]
    for number, (prompt, own) in enumerate(zip(prompts, places, strict=True)):
        if not own:
            raise ValueError(f"text {number} has no blank: none of its ids is one of {sorted(masks)}")
        if wrong := [token for token in prompt if not 0 <= token < config.vocab_size]:
            raise ValueError(f"text {number}: id {wrong[0]} is outside the vocabulary of {config.vocab_size}")
    L, N = max(map(len, prompts)), max(map(len, places))
    # Of every span its start and all its tokens are read.
    capacity = L + N * (1 + max_tokens)
    if capacity > config.max_length:
        raise ValueError(
            f"a text of {L} tokens and {N} blanks of up to {max_tokens} take {capacity} places, the model "
            f"has {config.max_length}: shorten the text, or lower max_tokens"
        )
    blanks = Blanks(
        tokens=jnp.asarray(right_padded(prompts, len(prompts), L)),
        lengths=jnp.asarray([len(prompt) for prompt in prompts], jnp.int32),
        places=jnp.asarray(right_padded(places, len(prompts), N)),
        counts=jnp.asarray([len(own) for own in places], jnp.int32),
    )
    rows = sampling_rows([sampling] * len(prompts), [(seed, row, 0) for row in range(len(prompts))])
    ends = np.int32(ids.start), np.int32(ids.end)
    written = np.asarray(fill(model, variables, blanks, rows, *ends, capacity, max_tokens))
    return [
        [[int(token) for token in span if token >= 0] for span in row[: len(own)]]
        for row, own in zip(written, places, strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("model", "capacity", "max_tokens"))
def fill(
    model: Decoder,
    variables: dict[str, Any],
    blanks: Blanks,
    rows: SamplingRows,
    start: jax.Array,
    end: jax.Array,
    capacity: int,
    max_tokens: int,
) -> jax.Array:
    """The compiled half of `infill`: int32 `[B, N, max_tokens]`, -1 where nothing was written."""
    B, L = blanks.tokens.shape
    N, V = blanks.places.shape[1], model.config.vocab_size
    batch = jnp.arange(B, dtype=jnp.int32)
    places = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None], (B, L))
    valid = (places < blanks.lengths[:, None]).astype(jnp.int32)
    read: Any = model.apply(
        variables,
        blanks.tokens,
        segment_ids=valid,
        positions=jnp.stack([places, jnp.zeros_like(places)], axis=-1),
        cache=new_cache(model, B, capacity),
        prefix=valid,
        method="hidden",
    )
    known_tokens = jnp.where(valid == 1, blanks.tokens, V)
    first = _State(
        cache=read[1],
        token=jnp.full(B, start, jnp.int32),
        blank=jnp.zeros(B, jnp.int32),
        offset=jnp.ones(B, jnp.int32),
        finished=jnp.zeros(B, bool),
        seen=jnp.zeros((B, V), bool).at[batch[:, None], known_tokens].set(True, mode="drop"),
        written=jnp.full((B, N, max_tokens), -1, jnp.int32),
    )

    def step(state: _State) -> _State:
        place = blanks.places[batch, jnp.minimum(state.blank, N - 1)]
        positions = jnp.stack([place, state.offset], axis=-1)[:, None]
        out: Any = model.apply(variables, state.token[:, None], positions=positions, cache=state.cache)
        logits, cache = out
        # A finished row's token lands in a slot that counts for nothing.
        cache = cache.replace(lengths=jnp.where(state.finished, state.cache.lengths, cache.lengths))
        sampled, _ = sample(known(logits[:, 0], V), rows, cache.lengths, state.seen)
        ended = (sampled == end) | (state.offset > max_tokens)
        writes = ~ended & ~state.finished
        at = jnp.where(writes, state.offset - 1, max_tokens)
        return _State(
            cache=cache,
            token=jnp.where(ended, start, sampled),
            blank=state.blank + ended.astype(jnp.int32),
            offset=jnp.where(ended, 1, state.offset + 1),
            finished=state.finished | (ended & (state.blank + 1 >= blanks.counts)),
            seen=state.seen.at[batch, jnp.where(writes, sampled, V)].set(True, mode="drop"),
            written=state.written.at[batch, state.blank, at].set(sampled, mode="drop"),
        )

    return jax.lax.while_loop(lambda state: ~jnp.all(state.finished), step, first).written
