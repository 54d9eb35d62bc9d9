"""Beam search: the most probable continuations, looked for several at a time.

As in Hugging Face `generate(num_beams=…)` with its default `early_stopping=False`: a finished beam leaves the
search and waits in a pool of the best by `log-probability / tokens ** length_penalty`, stop token counted
(Wu et al. 2016, arXiv:1609.08144, section 7, without its constants).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.generation.decode import TRACES, Writer, bucket, known, prefill, room, write
from hllm_jax.generation.request import Completion, FinishReason
from hllm_jax.nn.cache import KVCache

if TYPE_CHECKING:
    from hllm_jax.generation.vocabulary import Vocabulary

#: Score of a beam that is not there. Finite, so that differences of two stay numbers.
NONE = -1.0e9


class Beams(NamedTuple):
    """W sequences of each of P prompts: what they say so far, and their score."""

    scores: jax.Array  # float32 [P, W], log-probability; of finished beams with the length penalty
    tokens: jax.Array  # int32 [P, W, T], -1 past the end
    logprobs: jax.Array  # float32 [P, W, T]

    def pick(self, index: jax.Array) -> Beams:
        """The beams `index` `[P, any]` of each prompt."""
        row = jnp.arange(index.shape[0], dtype=index.dtype)[:, None]
        return Beams(self.scores[row, index], self.tokens[row, index], self.logprobs[row, index])

    def join(self, other: Beams) -> Beams:
        """The beams of both, prompt by prompt."""
        pairs = zip(self, other, strict=True)
        return Beams(*(jnp.concatenate(pair, axis=1) for pair in pairs))


class SearchState(NamedTuple):
    """What passes from one step to the next."""

    step: jax.Array  # int32, tokens made so far
    cache: KVCache  # P·W rows
    logits: jax.Array  # float32 [P·W, V], of the next token
    running: Beams
    finished: Beams
    open: jax.Array  # bool [P]: something running may still beat the pool


def beam_search(
    model: Writer,
    variables: dict[str, Any],
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    n: int = 1,
) -> list[Completion]:
    """The n best completions of each prompt, best first, prompt after prompt.

    Args:
        model, variables, vocabulary: see `Engine`.
        prompts: ids of the vocabulary, each 1 to `max_length` (the caller checks).
        num_beams: W, sequences that are followed per prompt.
        max_tokens: at most this many tokens, a stop token included.
        length_penalty: above 0 favours long completions, below 0 short ones, 0 compares log-probabilities.
        n: at most `num_beams`.
    """
    context = model.config.max_length
    P, W = len(prompts), num_beams
    L = bucket(max(map(len, prompts)), context)
    tokens, lengths = np.zeros((P, L), np.int32), np.asarray([len(p) for p in prompts], np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
    rooms = np.asarray([room(model, prompt) for prompt in prompts], np.int32)
    limits = np.minimum(max_tokens, rooms)
    vocab = min(model.config.vocab_size, vocabulary.vocab_size)
    logits, cache, _ = prefill(model, variables, jnp.asarray(tokens), jnp.asarray(lengths), vocab)
    finished = jax.device_get(
        search(
            model,
            variables,
            logits,
            cache,
            jnp.asarray(limits),
            jnp.asarray(np.asarray(vocabulary.stop_ids, np.int32)),
            jnp.float32(length_penalty),
            beams=W,
            length=bucket(int(limits.max(initial=1)), context),
            capacity=bucket(int((context - rooms + limits).max()), context),
            vocab=vocab,
        )
    )
    completions = []
    for p in range(P):
        for w in range(n):
            said = [int(t) for t in finished.tokens[p, w] if t >= 0]
            reason: FinishReason = "length" if len(said) == max_tokens else "context"
            if said and said[-1] in vocabulary.stop_ids:
                reason = "stop"
            characters = vocabulary.answer_stream()
            completions.append(
                Completion(
                    text="".join(characters.push(token) for token in said),
                    tokens=said,
                    logprobs=finished.logprobs[p, w, : len(said)].tolist(),
                    finish_reason=reason,
                )
            )
    return completions


@functools.partial(jax.jit, static_argnames=("model", "beams", "length", "capacity", "vocab"))
def search(
    model: Writer,
    variables: dict[str, Any],
    logits: jax.Array,
    cache: KVCache,
    limits: jax.Array,
    stop_ids: jax.Array,
    length_penalty: jax.Array,
    *,
    beams: int,
    length: int,
    capacity: int,
    vocab: int,
) -> Beams:
    """The finished beams of every prompt, best first; `logits` `[P, V]` and `cache` are those of `prefill`.

    Args:
        limits: int32 `[P]`, most tokens of a beam; 0 where there is no room for any.
        stop_ids: int32 `[any]`.
        length_penalty: float32 scalar.
        beams, length, capacity, vocab: W, T, slots of the cache, ids of the tokenizer.
    """
    TRACES["beam"] += 1
    P, W = limits.shape[0], beams
    # Enough candidates that W of them go on even if as many as possible end here.
    candidates = max(2, 1 + stop_ids.shape[0]) * W
    rows = jnp.repeat(jnp.arange(P, dtype=jnp.int32), W)

    def nothing(scores: jax.Array) -> Beams:
        return Beams(scores, jnp.full((P, W, length), -1, jnp.int32), jnp.zeros((P, W, length), jnp.float32))

    def searching(state: SearchState) -> jax.Array:
        return jnp.any(state.open)

    def body(state: SearchState) -> SearchState:
        step = state.step
        logprobs = jax.nn.log_softmax(state.logits, axis=-1).reshape(P, W, -1)
        V = logprobs.shape[-1]
        totals = (state.running.scores[:, :, None] + logprobs).reshape(P, W * V)
        scores, index = jax.lax.top_k(totals, candidates)
        parent, token = index // V, (index % V).astype(jnp.int32)
        chosen = state.running.pick(parent)
        last = jnp.take_along_axis(logprobs.reshape(P, W * V), index, axis=1)
        chosen = Beams(
            scores, chosen.tokens.at[:, :, step].set(token), chosen.logprobs.at[:, :, step].set(last)
        )
        ends = jnp.any(token[:, :, None] == stop_ids[None, None, :], axis=2) | (step + 1 >= limits)[:, None]

        # Of the beams that end here, only those among the W best reach the pool.
        eligible = ends & (jnp.arange(candidates) < W)[None, :] & state.open[:, None] & (scores > NONE / 2)
        ranked = jnp.where(eligible, scores / (step + 1.0) ** length_penalty, NONE)
        pool = state.finished.join(chosen._replace(scores=ranked))
        finished = pool.pick(jax.lax.top_k(pool.scores, W)[1])

        _, onward = jax.lax.top_k(jnp.where(ends, NONE, scores), W)
        running = chosen.pick(onward)
        running = running._replace(
            scores=jnp.where(jnp.take_along_axis(ends, onward, axis=1), NONE, running.scores)
        )
        hope = running.scores[:, 0] / (step + 1.0) ** length_penalty
        still = state.open & (running.scores[:, 0] > NONE / 2) & (hope > jnp.min(finished.scores, axis=1))

        parents = jnp.take_along_axis(parent, onward, axis=1) + jnp.arange(P)[:, None] * W
        tokens = jnp.take_along_axis(token, onward, axis=1).reshape(P * W)
        kept = state.cache.take(parents.reshape(-1), cross=False)
        logits, cache = write(model, variables, tokens, kept)
        return SearchState(step + 1, cache, known(logits, vocab), running, finished, still)

    first = jnp.where(jnp.arange(W) == 0, 0.0, NONE)[None, :]
    state = SearchState(
        step=jnp.zeros((), jnp.int32),
        cache=cache.take(rows, cross=False).grow(capacity),
        logits=jnp.take(logits, rows, axis=0),
        running=nothing(jnp.broadcast_to(first, (P, W))),
        finished=nothing(jnp.full((P, W), NONE)),
        open=limits > 0,
    )
    return jax.lax.while_loop(searching, body, state).finished
