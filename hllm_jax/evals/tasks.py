"""How well a model with a head answers held-out examples of its task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hllm_jax.data.task import TaskDataConfig
from hllm_jax.evals.scores import class_scores, confusion, entities, f1_of, has_entities, span_scores
from hllm_jax.objectives.sums import Batch, Loss
from hllm_jax.objectives.tasks import answer_logits, best_answer, task_logits
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.state import TrainState, Tree, merge

Answers = dict[str, np.ndarray]


def make_task_evaluation(
    loss: Loss, layout: Layout, batches: Any, task: TaskDataConfig, limit: int | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """A function from a state to its scores on held-out examples, always the same ones.

    Args:
        loss: of the task.
        layout: of the state; its model has the head.
        batches: `Batches` of the held-out split with `epochs=1`.
        task: with its labels.
        limit: at most this many batches.

    Returns:
        state -> `eval/loss`, `eval/examples` and, by kind, `eval/accuracy` and `eval/f1` (`class_scores`),
        also `eval/entity_f1` where labels are tags of entities; or `eval/exact` and `eval/f1` of stretches.
    """
    count = len(batches) if limit is None else min(limit, len(batches))
    local = layout.local_rows(batches.batch_size)

    def answer(trainable: Tree, frozen: Tree, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
        variables = merge(trainable, frozen)
        with layout.activations():
            logits = task_logits(layout.model, variables, batch, None)
            cost = loss(variables, batch, None)["loss"]
        return cost, answers(logits, batch, task)

    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    jitted = jax.jit(answer, out_shardings=everywhere)

    def measure(state: TrainState) -> dict[str, float]:
        cost = np.zeros(2)
        found: list[Answers] = []
        for n in range(count):
            rows = layout.put(batches.rows(n, local.start, local.stop))
            sums, said = jax.device_get(jitted(state.trainable, state.frozen, rows))
            cost += np.asarray(sums, np.float64)
            found.append(said)
        joined = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        shown = {f"eval/{name}": value for name, value in score(joined, task).items()}
        return {"eval/loss": float(cost[0] / cost[1]) if cost[1] else 0.0, **shown}

    return measure


def answers(logits: jax.Array, batch: Batch, task: TaskDataConfig) -> dict[str, jax.Array]:
    """What is said and what is right, int32, and which rows (or positions) count, `weights`."""
    if task.kind == "span":
        start, end = answer_logits(logits, batch)
        said = jnp.stack(best_answer(start, end, batch["context"], task.longest_answer), axis=-1)
        right = jnp.stack([batch["starts"], batch["ends"]], axis=-1)
    else:
        said = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        right = batch["labels" if task.kind == "sequence" else "targets"]
    return {"said": said, "right": right, "weights": batch["weights"]}


def score(found: Answers, task: TaskDataConfig) -> dict[str, float]:
    """The scores of a task, see `make_task_evaluation`."""
    said, right, used = found["said"], found["right"], found["weights"] > 0
    if task.kind == "span":
        return {**span_scores(right[used], said[used]), "examples": float(used.sum())}
    scores = class_scores(confusion(right[used], said[used], len(task.labels)))
    rows = used.any(axis=1) if used.ndim == 2 else used
    scores["examples"] = float(rows.sum())
    if task.kind == "tokens" and has_entities(task.labels):
        scores["entity_f1"] = entity_f1(
            [[task.labels[tag] for tag in line[mask]] for line, mask in zip(right, used, strict=True)],
            [[task.labels[tag] for tag in line[mask]] for line, mask in zip(said, used, strict=True)],
        )
    return scores


def entity_f1(right: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> float:
    """F1 of entities over all texts: one counts if type and both ends are right (CoNLL 2003)."""
    theirs = [entities(tags) for tags in right]
    ours = [entities(tags) for tags in said]
    both = sum(len(a & b) for a, b in zip(theirs, ours, strict=True))
    return f1_of(sum(map(len, theirs)), sum(map(len, ours)), both)
