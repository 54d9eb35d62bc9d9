"""Tasks of a head on an encoder: a class, a class for every word, a stretch of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.objectives.language_model import token_sums
from hllm_jax.objectives.routing import apply_model
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables

if TYPE_CHECKING:
    from hllm_jax.data.examples import TaskKind


def task_logits(model: nn.Module, variables: Variables, batch: Batch, rng: jax.Array | None) -> jax.Array:
    """What the head of a task says of the rows of a `TaskBatch`."""
    output, _ = apply_model(
        model,
        variables,
        rng,
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        token_types=batch["token_types"],
    )
    return output.task_logits


def classification(model: nn.Module) -> Loss:
    """Cross-entropy of the class of every row, over a `ClassificationBatch`.

    Args:
        model: its output has `task_logits` `[B, C]`.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        return token_sums(task_logits(model, variables, batch, rng), batch["labels"], batch["weights"])

    return loss


def token_classification(model: nn.Module) -> Loss:
    """Cross-entropy of the class of every word, read at its first token, over a `TaggingBatch` (Devlin et al.
    2019, section 5.3).

    Args:
        model: its output has `task_logits` `[B, L, C]`.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        return token_sums(task_logits(model, variables, batch, rng), batch["targets"], batch["weights"])

    return loss


def span_qa(model: nn.Module) -> Loss:
    """Where an answer begins and ends, over an `AnswerBatch`.

        loss = Σ w·(nll(start) + nll(end))/2 / Σ w

    Both are a softmax over the positions of the row that hold a token (Devlin et al. 2019, section 4.2).

    Args:
        model: its output has `task_logits` `[B, L, 2]`: of the start and of the end.

    Returns:
        A loss with `loss` and `accuracy` (start and end both right).
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        start, end = answer_logits(task_logits(model, variables, batch, rng), batch)
        weights = batch["weights"]
        first, last = token_sums(start, batch["starts"], weights), token_sums(end, batch["ends"], weights)
        right = (jnp.argmax(start, -1) == batch["starts"]) & (jnp.argmax(end, -1) == batch["ends"])
        total = first["loss"][1]
        return {
            "loss": ((first["loss"][0] + last["loss"][0]) / 2, total),
            "accuracy": (jnp.sum(weights * right.astype(jnp.float32)), total),
        }

    return loss


def answer_logits(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits `[B, L, 2]` of start and end, float32 `[B, L]` each; padding has no chance."""
    held = batch["segment_ids"] > 0
    # A row that is all padding keeps its logits: a softmax over nothing would not be finite.
    open_to = held | ~jnp.any(held, axis=-1, keepdims=True)
    shown = jnp.where(jnp.expand_dims(open_to, -1), logits.astype(jnp.float32), -1e30)
    return shown[..., 0], shown[..., 1]


def best_answer(
    start: jax.Array, end: jax.Array, context: jax.Array, longest: int
) -> tuple[jax.Array, jax.Array]:
    """The stretch (first, last) with the largest sum of logits, int32 `[B]` each.

    It lies in the context and has at most `longest` tokens; the first token of the row competes as "no
    answer" (Devlin et al. 2019, section 4.3, with a threshold of 0).

    Args:
        start, end: float `[B, L]`.
        context: int `[B, L]`, 1 on what may answer.
        longest: tokens of an answer.
    """
    allowed = context > 0
    masked_end = jnp.where(allowed, end, -jnp.inf)
    best = jnp.full(start.shape, -jnp.inf)
    width = jnp.zeros(start.shape, jnp.int32)
    # One shift for each length of the answer: no array of all pairs is ever made.
    for extra in range(min(longest, start.shape[1])):
        shifted = jnp.pad(masked_end[:, extra:], ((0, 0), (0, extra)), constant_values=-jnp.inf)
        better = shifted > best
        best, width = jnp.where(better, shifted, best), jnp.where(better, extra, width)
    scores = jnp.where(allowed, start + best, -jnp.inf)
    first = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    last = first + jnp.take_along_axis(width, first[:, None], axis=1)[:, 0]
    none = start[:, 0] + end[:, 0] >= jnp.max(scores, axis=-1)
    zero = jnp.zeros_like(first)
    return jnp.where(none, zero, first), jnp.where(none, zero, last)


LOSSES = {"sequence": classification, "tokens": token_classification, "span": span_qa}


def make_task_loss(kind: TaskKind, model: nn.Module) -> Loss:
    """The loss of a task."""
    return LOSSES[kind](model)
