"""The compiled half of generation: `prefill` the prompts, `start` the rows, `decode` token after token.

Three programs, each traced once per bucket of shapes. The cache is an explicit argument and result; `decode`
is given its buffers to reuse, so that a token is written in place. Nothing here knows text.

A prompt is what a decoder goes on with, or what an encoder reads: only `prefill` knows the difference.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hllm_jax.generation.sampling import SamplingRows, sample
from hllm_jax.models.decoder import Decoder, init_cache
from hllm_jax.models.encoder_decoder import EncoderDecoder
from hllm_jax.nn.cache import KVCache

#: A model that writes one token after another.
Writer: TypeAlias = Decoder | EncoderDecoder

#: How often each program was traced in this process; tests hold it still.
TRACES: Counter[str] = Counter()

#: Most tokens that one call of `decode` can make: the size of the buffers it returns.
CHUNK = 64

#: Longest stretch of a prompt that passes the model at once: bounds the memory of the attention scores.
PREFILL_CHUNK = 512

#: Most tokens that an encoder reads at once, for the same reason; its rows cannot be cut.
ENCODE_TOKENS = 8192


class DecodeState(NamedTuple):
    """What passes from one token to the next.

    Attributes:
        cache: keys and values of all tokens but the last sampled one.
        token: int32 `[B]`, the last sampled token.
        made: int32 `[B]`, tokens sampled so far.
        finished: bool `[B]`; a finished row takes part in the computation and changes in nothing.
        seen: bool `[B, V]`, tokens of the prompt and of the completion, for the repetition penalty.
    """

    cache: KVCache
    token: jax.Array
    made: jax.Array
    finished: jax.Array
    seen: jax.Array


class Rows(NamedTuple):
    """What stays the same for each row of a batch.

    Attributes:
        sampling: parameters per row.
        limits: int32 `[B]`, most tokens to sample; 0 for a row that only fills up the batch.
        stop_ids: int32 `[any]`, tokens that end a row.
    """

    sampling: SamplingRows
    limits: jax.Array
    stop_ids: jax.Array


class Made(NamedTuple):
    """Tokens of one call, `[B, CHUNK]`; -1 where a row made none."""

    tokens: jax.Array
    logprobs: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "vocab"))
def prefill(
    model: Writer, variables: dict[str, Any], tokens: jax.Array, lengths: jax.Array, vocab: int
) -> tuple[jax.Array, KVCache, jax.Array]:
    """Read right-padded prompts.

    Args:
        model, variables: the model and `{"params": …}`.
        tokens: int32 `[P, L]`, what stands behind a prompt's end does not matter.
        lengths: int32 `[P]`, at least 1.
        vocab: ids the tokenizer knows; ids above get probability 0.

    Returns:
        float32 logits `[P, V]` after each prompt's last token, the cache, and which tokens each row contains
        so far, bool `[P, V]`. A decoder's row is its prompt (L slots); that of an encoder-decoder has the
        token it starts with (one slot), and its cache remembers the prompt.
    """
    TRACES["prefill"] += 1
    if isinstance(model, EncoderDecoder):
        last, cache, row = _encode(model, variables, tokens, lengths)
        lengths = jnp.ones_like(lengths)
    else:
        last, cache = _read(model, variables, tokens, lengths)
        row = tokens
    head: Any = model.apply(variables, last[:, None], method="head")
    logits = head[:, 0]

    P, V = logits.shape
    rows = jnp.arange(P, dtype=jnp.int32)[:, None]
    there = jnp.arange(row.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]
    seen = jnp.zeros((P, V), bool).at[rows, jnp.where(there, row, V)].set(True, mode="drop")
    return known(logits, vocab), cache, seen


def _read(
    model: Decoder, variables: dict[str, Any], tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, KVCache]:
    """The state `[P, D]` of each prompt's last token, and the cache with its keys and values."""
    P, L = tokens.shape
    step = next(size for size in range(min(L, PREFILL_CHUNK), 0, -1) if L % size == 0)
    cache = new_cache(model, P, L)

    def read(carry: tuple[KVCache, jax.Array], start: jax.Array) -> tuple[tuple[KVCache, jax.Array], None]:
        cache, last = carry
        chunk = jax.lax.dynamic_slice_in_dim(tokens, start, step, axis=1)
        places = start + jnp.arange(step, dtype=jnp.int32)[None, :]
        valid = (places < lengths[:, None]).astype(jnp.int32)
        out: Any = model.apply(variables, chunk, valid, None, cache, method="hidden")
        x, cache = out
        at = lengths - 1 - start
        here = jnp.take_along_axis(x, jnp.clip(at, 0, step - 1)[:, None, None], axis=1)[:, 0]
        return (cache, jnp.where(((at >= 0) & (at < step))[:, None], here, last)), None

    last = jnp.zeros((P, model.config.embed), model.execution.resolve().dtype)
    if step == L:
        (cache, last), _ = read((cache, last), jnp.int32(0))
    else:
        (cache, last), _ = jax.lax.scan(read, (cache, last), jnp.arange(0, L, step, dtype=jnp.int32))
    return last, cache


def _encode(
    model: EncoderDecoder, variables: dict[str, Any], tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, KVCache, jax.Array]:
    """The decoder's state `[P, D]` after its first token, the cache that remembers the prompts, and that
    token `[P, 1]`."""
    P, L = tokens.shape
    valid = (jnp.arange(L, dtype=jnp.int32)[None, :] < lengths[:, None]).astype(jnp.int32)

    def encode(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        encoded: Any = model.apply(variables, *rows, method="encode")
        return encoded

    at_once = next(size for size in range(max(1, min(P, ENCODE_TOKENS // L)), 0, -1) if P % size == 0)
    if at_once == P:
        encoded = encode((tokens, valid))
    else:
        groups = jax.lax.map(encode, tuple(x.reshape(-1, at_once, L) for x in (tokens, valid)))
        encoded = groups.reshape(P, L, -1)
    cache: Any = model.apply(variables, encoded, valid, 1, method="cache")
    start = jnp.full((P, 1), model.config.decoder_start, jnp.int32)
    out: Any = model.apply(variables, start, cache=cache, method="hidden")
    return out[0][:, 0], out[1], start


@functools.partial(jax.jit, static_argnames=("capacity",))
def start(
    logits: jax.Array, cache: KVCache, seen: jax.Array, prompts: jax.Array, rows: Rows, capacity: int
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Sample each row's first token from its prompt's logits.

    Args:
        logits, cache, seen: from `prefill`, `P` prompts.
        prompts: int32 `[B]`, which prompt a row continues; several rows may share one.
        rows: parameters of the B rows.
        capacity: slots to give each row, S.

    Returns:
        The state, and the first tokens int32 `[B]` with their log-probabilities `[B]`.
    """
    TRACES["start"] += 1
    taken = cache.take(prompts).grow(capacity)
    blank = jnp.zeros(prompts.shape, jnp.int32)
    state = DecodeState(
        cache=taken,
        token=blank,
        made=blank,
        finished=rows.limits <= 0,
        seen=jnp.take(seen, prompts, axis=0),
    )
    return advance(state, taken, jnp.take(logits, prompts, axis=0), rows)


@functools.partial(jax.jit, static_argnames=("model", "vocab"), donate_argnames=("state",))
def decode(
    model: Writer,
    variables: dict[str, Any],
    state: DecodeState,
    rows: Rows,
    stopped: jax.Array,
    steps: jax.Array,
    vocab: int,
) -> tuple[DecodeState, Made]:
    """Go on for some tokens, or until every row has finished.

    Args:
        model, variables: as for `prefill`.
        state: from `start` or the call before; its buffers are used up.
        rows: as for `start`.
        stopped: bool `[B]`, rows that the host has ended (a stop string).
        steps: int32, how many tokens; at most `CHUNK`.
        vocab: ids the tokenizer knows.
    """
    TRACES["decode"] += 1
    B = stopped.shape[0]
    made = Made(jnp.full((B, CHUNK), -1, jnp.int32), jnp.zeros((B, CHUNK), jnp.float32))

    def running(carry: tuple[DecodeState, Made, jax.Array]) -> jax.Array:
        state, _, step = carry
        return (step < steps) & ~jnp.all(state.finished)

    def body(carry: tuple[DecodeState, Made, jax.Array]) -> tuple[DecodeState, Made, jax.Array]:
        state, made, step = carry
        logits, cache = write(model, variables, state.token, state.cache)
        # A finished row's token lands in a slot that counts for nothing, or is dropped at the end of it.
        lengths = jnp.where(state.finished, state.cache.lengths, cache.lengths)
        state, tokens, logprobs = advance(state, cache.replace(lengths=lengths), known(logits, vocab), rows)
        written = Made(
            jax.lax.dynamic_update_slice(made.tokens, tokens[:, None], (0, step)),
            jax.lax.dynamic_update_slice(made.logprobs, logprobs[:, None], (0, step)),
        )
        return state, written, step + 1

    state = state._replace(finished=state.finished | stopped)
    state, made, _ = jax.lax.while_loop(running, body, (state, made, jnp.zeros((), jnp.int32)))
    return state, made


def write(
    model: Writer, variables: dict[str, Any], token: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """Add one token to every row: int32 `[B]` -> float32 logits of the next `[B, V]`, and the cache."""
    out: Any = model.apply(variables, token[:, None], cache=cache, method="hidden")
    logits: Any = model.apply(variables, out[0], method="head")
    return logits[:, 0], out[1]


def advance(
    state: DecodeState, cache: KVCache, logits: jax.Array, rows: Rows
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Sample one token per running row and see which rows it ends.

    Returns:
        The state after it, and tokens int32 `[B]` (-1 in finished rows) with log-probabilities `[B]`.
    """
    sampled, logprobs = sample(logits, rows.sampling, cache.lengths, state.seen)
    running = ~state.finished
    made = state.made + running.astype(jnp.int32)
    ended = jnp.any(sampled[:, None] == rows.stop_ids[None, :], axis=1) | (made >= rows.limits)
    index = jnp.arange(sampled.shape[0], dtype=jnp.int32)
    after = DecodeState(
        cache=cache,
        token=jnp.where(running, sampled, state.token),
        made=made,
        finished=state.finished | ended,
        seen=state.seen.at[index, sampled].set(True, mode="drop"),
    )
    return after, jnp.where(running, sampled, -1), jnp.where(running, logprobs, 0.0)


def known(logits: jax.Array, vocab: int) -> jax.Array:
    """Logits `[..., V]` with -inf for ids the tokenizer does not have (tables padded to a round size)."""
    if logits.shape[-1] <= vocab:
        return logits
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(ids < vocab, logits, -jnp.inf)


def room(model: Writer, prompt: Sequence[int]) -> int:
    """How many tokens there is place for after a prompt: an encoder-decoder's row begins with one token."""
    begun = 1 if isinstance(model, EncoderDecoder) else len(prompt)
    return model.config.max_length - begun


def new_cache(model: Decoder, batch: int, capacity: int) -> KVCache:
    """An empty cache in the model's layout and dtype."""
    execution = model.execution.resolve()
    return init_cache(model.config, batch, capacity, jnp.dtype(execution.dtype), execution.scan_layers)


def bucket(size: int, most: int, least: int = 32) -> int:
    """The next of 32, 48, 64, 96, 128, 192, … that holds `size`, at most `most`: few shapes, few programs."""
    power = max(least, 1 << max(size - 1, 0).bit_length())
    three_quarters = power * 3 // 4
    return min(most, three_quarters if least < power and size <= three_quarters else power)
