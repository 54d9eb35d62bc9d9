"""How often a model prefers the better of two answers, how sure it is, and what length alone would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hllm_jax.objectives.pairs import pair_scores
from hllm_jax.objectives.preference import Pair, answers
from hllm_jax.objectives.reward import (
    Reliability,
    calibration_error,
    longer_wins,
    margin_histogram,
    reliability,
)
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.state import TrainState, Tree, merge

#: Edges of the bins of margins. At a margin of 5, Bradley–Terry says 99.3 %.
EDGES = tuple(0.5 * n for n in range(-10, 11))

#: From variables and a batch to a score of both sides, `[B]` each.
Scores = Callable[[Variables, Batch], Pair]


class Counts(NamedTuple):
    """Sums over pairs.

    Attributes:
        sums: of the loss, and `longer_wins`.
        margins: weight of the pairs in each bin of `EDGES`, `[bins + 1]`.
        bins: see `Reliability`.
    """

    sums: Sums
    margins: Any
    bins: Reliability


def make_pair_evaluation(
    loss: Loss,
    layout: Layout,
    batches: Any,
    limit: int | None = None,
    scores: Scores | None = None,
    note: Callable[[dict[str, Any]], None] | None = None,
) -> Callable[[TrainState], dict[str, float]]:
    """A function from a state to the metrics of held-out pairs, always the same ones.

    Args:
        loss: over a `PairBatch`.
        layout: of the state.
        batches: `Batches` of the held-out split with `epochs=1`.
        limit: at most this many batches.
        scores: what is compared; None: the scores of a reward model.
        note: is given `step`, and what is more than a number: `edges` and `margins` of the histogram, and
            `count`, `confidence` and `right` of the bins of calibration.

    Returns:
        state -> `eval/loss` and the other means of the loss, `eval/accuracy` among them; `eval/longer_wins`,
        the accuracy of the rule that the longer answer is the better one; `eval/calibration_error`; and
        `eval/pairs`, their weight.
    """
    count = len(batches) if limit is None else min(limit, len(batches))
    local = layout.local_rows(batches.batch_size)
    read = scores or (lambda variables, batch: pair_scores(layout.model, variables, batch, None)[0])

    def compare(trainable: Tree, frozen: Tree, batch: Batch) -> Counts:
        variables, weights = merge(trainable, frozen), batch["pair_weights"]
        with layout.activations():
            sums = dict(loss(variables, batch, None))
            chosen, rejected = read(variables, batch)
        marks = Pair(batch["chosen_weights"], batch["rejected_weights"])
        lengths = answers(marks, marks)
        sums["longer_wins"] = longer_wins(lengths.chosen, lengths.rejected, weights)
        histogram = margin_histogram(chosen, rejected, weights, jnp.asarray(EDGES))
        return Counts(sums, histogram, reliability(chosen, rejected, weights))

    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    jitted = jax.jit(compare, out_shardings=everywhere)

    def measure(state: TrainState) -> dict[str, float]:
        total: Counts | None = None
        for n in range(count):
            rows = layout.put(batches.rows(n, local.start, local.stop))
            found = jax.device_get(jitted(state.trainable, state.frozen, rows))
            wide = jax.tree.map(np.float64, found)
            total = wide if total is None else jax.tree.map(np.add, total, wide)
        assert total is not None, "data without a batch was refused"
        if note is not None:
            parts = {"margins": total.margins, **total.bins._asdict()}
            vectors = {name: np.round(np.asarray(part), 4).tolist() for name, part in parts.items()}
            note({"step": int(state.step), "edges": list(EDGES), **vectors})
        means = {f"eval/{name}": float(top / bottom) for name, (top, bottom) in total.sums.items() if bottom}
        bins = Reliability(*(jnp.asarray(part, jnp.float32) for part in total.bins))
        error = float(jax.device_get(calibration_error(bins)))
        return {**means, "eval/calibration_error": error, "eval/pairs": float(total.sums["loss"][1])}

    return measure
