"""Rollouts: answers that a policy samples, with everything that was known while they were sampled.

Prompts are read once, whatever the number of answers to each, and answers grow in one compiled loop that ends
when the last of them has. Model, cache and sampler are those of `generation/`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from hllm_jax.generation.decode import DecodeState, Rows, advance, known, prefill, write
from hllm_jax.generation.sampling import SamplingRows
from hllm_jax.models.decoder import Decoder
from hllm_jax.nn.cache import KVCache
from hllm_jax.objectives.log_likelihood import Likelihood, chunked_likelihood
from hllm_jax.objectives.sums import Variables
from hllm_jax.parallel.layout import Layout
from hllm_jax.rl.config import RolloutConfig


class Rollout(struct.PyTreeNode):
    """Prompts and the answers to them. Index t speaks of token t, in every array.

    B = P·group rows; row `i·group + j` is answer j to prompt i. L = prompt window + most tokens of an answer.

    Attributes:
        tokens: int32 `[B, L]`, a prompt and right behind it its answer, padded on the right.
        lengths: int32 `[B]`, tokens of the whole row.
        actions: float32 `[B, L]`, 1 where `tokens[b, t]` was sampled, the stop token included; else 0.
        log_probs: float32 `[B, L]`, log p(tokens[b, t] | what stands before it) of the distribution that was
            sampled: at its temperature; 0 where nothing was sampled.
        ended: bool `[B]`, a stop token was sampled; false: the answer was cut off at its longest.
    """

    tokens: jax.Array
    lengths: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    ended: jax.Array

    @property
    def begins(self) -> jax.Array:
        """int32 `[B]`: where the answer begins, the tokens of the prompt."""
        return self.lengths - jnp.sum(self.actions, axis=1).astype(jnp.int32)


#: What goes from one token to the next: the state of decoding, logits `[B, V]`, and the rollout so far.
_Carry: TypeAlias = tuple[DecodeState, jax.Array, Rollout]


def check_rollout(model: Any, config: RolloutConfig) -> None:
    """Refuse a model that cannot write such rows.

    Raises:
        ValueError: it is no decoder, or one that gives scores, or its rows are shorter.
    """
    if not isinstance(model, Decoder):
        raise ValueError(f"a policy goes on with its prompt: it is a decoder, not a {type(model).__name__}")
    if model.config.head == "score":
        raise ValueError("model.load is a reward model, which does not write: load a language model")
    if config.length > model.config.max_length:
        raise ValueError(
            f"rollout.prompt_window {config.prompt_window} and rollout.max_tokens {config.max_tokens} make "
            f"rows of {config.length} tokens, longer than the model's max_length {model.config.max_length}"
        )


def sample_rollout(
    model: Decoder,
    layout: Layout,
    config: RolloutConfig,
    stop_ids: Sequence[int],
    vocab: int,
    variables: Variables,
    prompts: jax.Array,
    lengths: jax.Array,
    rng: jax.Array,
    update: jax.Array,
) -> Rollout:
    """Sample `config.group` answers to each prompt; to be compiled.

    Each device writes its own rows, with weights that are put together once beforehand where they are spread
    over the axes of the batch, and stops when they have ended. What is drawn for a row depends on the seed,
    the update and the number of the row alone.

    Args:
        model: the policy.
        layout: of its variables.
        config: sizes and temperature.
        stop_ids: tokens that end an answer.
        vocab: ids that the tokenizer knows; others are never sampled.
        variables: of the policy, adapters included.
        prompts: int32 `[P, W]`; what stands behind a prompt's end does not matter.
        lengths: int32 `[P]`, at least 1.
        rng: `TrainState.rng`.
        update: int32 scalar, `TrainState.step`.
    """
    P, group = prompts.shape[0], config.group
    number = jnp.arange(P * group, dtype=jnp.uint32)
    drawn = jax.random.bits(jax.random.wrap_key_data(rng), (), jnp.uint32)
    of_row = jnp.stack(
        [jnp.full_like(number, drawn), jnp.full_like(number, update.astype(jnp.uint32)), number], axis=1
    )
    write_rows = functools.partial(_rows, model, config, np.asarray(stop_ids, np.int32), vocab)
    axes = layout.gathering().axes

    def on_each_device(variables: Variables, *arrays: jax.Array) -> Rollout:
        with layout.activations(axes):
            return write_rows(variables, *arrays)

    if not axes:
        return on_each_device(variables, prompts, lengths, of_row)
    rows = PartitionSpec(axes)
    mapped = jax.shard_map(
        on_each_device,
        mesh=layout.mesh,
        in_specs=(PartitionSpec(), rows, rows, rows),
        out_specs=rows,
        axis_names=set(axes),
        check_vma=False,
    )
    return mapped(variables, prompts, lengths, of_row)


def _rows(
    model: Decoder,
    config: RolloutConfig,
    stop_ids: np.ndarray,
    vocab: int,
    variables: Variables,
    prompts: jax.Array,
    lengths: jax.Array,
    seeds: jax.Array,
) -> Rollout:
    """The rollout of prompts `[P, W]`, whose rows draw from `seeds` uint32 `[B, 3]`."""
    group, temperature = config.group, config.temperature
    held: dict[str, Any] = dict(variables)
    logits, cache, _ = prefill(model, held, prompts, lengths, vocab)
    logits, lengths = jnp.repeat(logits, group, axis=0), jnp.repeat(lengths, group)
    tokens = jnp.repeat(prompts, group, axis=0)
    B = tokens.shape[0]
    places = jnp.arange(config.length, dtype=jnp.int32)[None, :]
    tokens = jnp.pad(tokens, ((0, 0), (0, config.max_tokens)))

    ones, zeros = jnp.ones((B,), jnp.float32), jnp.zeros((B,), jnp.int32)
    rows = Rows(
        # Tempered logits are handed in, so the log-probability that comes back is that of what was sampled.
        sampling=SamplingRows(ones, zeros, ones, jnp.zeros_like(ones), ones, seeds),
        limits=jnp.full((B,), config.max_tokens, jnp.int32),
        stop_ids=jnp.asarray(stop_ids),
    )
    nothing = jnp.zeros((B, config.length), jnp.float32)
    rollout = Rollout(
        tokens=jnp.where(places < lengths[:, None], tokens, 0),
        lengths=lengths,
        actions=nothing,
        log_probs=nothing,
        ended=jnp.zeros((B,), bool),
    )
    state = DecodeState(
        cache=_repeated(cache, group).grow(config.length),
        token=zeros,
        made=zeros,
        finished=jnp.zeros((B,), bool),
        seen=jnp.zeros((B, 1), bool),
    )

    def running(carry: _Carry) -> jax.Array:
        return ~jnp.all(carry[0].finished)

    def body(carry: _Carry) -> _Carry:
        state, logits, rollout = carry
        going = ~state.finished
        state, token, log_prob = advance(state, state.cache, logits / temperature, rows)
        here = (places == rollout.lengths[:, None]) & going[:, None]
        stopped = jnp.any(token[:, None] == rows.stop_ids[None, :], axis=1)
        rollout = Rollout(
            tokens=jnp.where(here, token[:, None], rollout.tokens),
            lengths=rollout.lengths + going.astype(jnp.int32),
            actions=jnp.where(here, 1.0, rollout.actions),
            log_probs=jnp.where(here, log_prob[:, None], rollout.log_probs),
            ended=rollout.ended | (going & stopped),
        )
        # Also behind the last token, where nobody reads it: a sampler before the loop, beside the one in it,
        # would take longer to compile than that takes to run.
        logits, cache = write(model, held, state.token, state.cache)
        counted = jnp.where(state.finished, state.cache.lengths, cache.lengths)
        state = state._replace(cache=cache.replace(lengths=counted))
        return state, known(logits, vocab), rollout

    return jax.lax.while_loop(running, body, (state, logits, rollout))[2]


def _repeated(cache: KVCache, group: int) -> KVCache:
    """The cache with each row `group` times, one after the other."""

    def repeat(held: jax.Array) -> jax.Array:
        return jnp.repeat(held, group, axis=1 if cache.stacked else 0)

    return cache.replace(
        keys=jax.tree.map(repeat, cache.keys),
        values=jax.tree.map(repeat, cache.values),
        lengths=jnp.repeat(cache.lengths, group),
    )


def answer_likelihood(
    model: Decoder,
    variables: Variables,
    tokens: jax.Array,
    lengths: jax.Array,
    begins: jax.Array,
    config: RolloutConfig,
    vocab: int,
    chunks: int = 1,
) -> Likelihood:
    """What a policy says of the answers of a rollout, by the pass that trains: without dropout, which was not
    there when they were sampled.

    Logits are made for the answers alone, not for the prompts.

    Args:
        model, variables: the policy.
        tokens, lengths, begins: of the rollout, `[B, L]` and `[B]`.
        config: they were sampled with.
        vocab: ids that could be sampled.
        chunks: divides `config.max_tokens`; see `chunked_likelihood`.

    Returns:
        Log-probabilities and entropies `[B, L]`, aligned as in `Rollout`: index t speaks of token t. 0 on the
        prompt; behind the end of a row they are finite and without meaning.
    """
    applied: Any = model.apply(variables, tokens, held_tokens(tokens, lengths), method="before_head")
    x, head = applied

    def possible(x: jax.Array) -> jax.Array:
        return known(head(x), vocab)

    # Within the row, whatever the caller left of the actions that `begins` is computed from.
    begins = jnp.clip(begins, 1, config.prompt_window)
    at = begins[:, None] + jnp.arange(config.max_tokens, dtype=jnp.int32)[None, :]
    # The state at t - 1 is what speaks of token t.
    before = jnp.take_along_axis(x, at[:, :, None] - 1, axis=1)
    answers = jnp.take_along_axis(tokens, at, axis=1)
    found = chunked_likelihood(before, possible, answers, config.temperature, chunks)
    rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]

    def aligned(of_answers: jax.Array) -> jax.Array:
        return jnp.zeros(tokens.shape, jnp.float32).at[rows, at].set(of_answers, unique_indices=True)

    return Likelihood(aligned(found.log_probs), aligned(found.entropy))


def held_tokens(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Segment ids int32 `[B, L]`: 1 on the tokens of a row, 0 behind its end."""
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    return (places < lengths[:, None]).astype(jnp.int32)
