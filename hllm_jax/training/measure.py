"""Loss, perplexity and bits per byte on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from hllm_jax.objectives.sums import Batch, Loss, Sums
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.state import TrainState
from hllm_jax.training.step import make_eval_step


def make_evaluation(
    loss: Loss, layout: Layout, batches: Any, byte_lengths: np.ndarray | None = None, limit: int | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """A function from a state to the metrics of held-out batches, always the same ones.

    Args:
        loss: its entry `loss` (or `nll`, where there is one) is the negative log-likelihood.
        layout: of the state.
        batches: `Batches` of the held-out split with `epochs=1`.
        byte_lengths: int `[V]`, UTF-8 bytes that each token stands for (`tokenizer.byte_lengths`); None for
            objectives that do not predict the whole text, where bits per byte would mean nothing.
        limit: at most this many batches.
    """
    step = make_eval_step(loss, layout)
    count = len(batches) if limit is None else min(limit, len(batches))
    local = layout.local_rows(batches.batch_size)

    def put_own(batch: Mapping[str, Any]) -> Batch:
        return layout.put({name: array[local] for name, array in batch.items()})

    def measure(state: TrainState) -> dict[str, float]:
        # Every process reads all rows, because it counts the bytes of all; it feeds its own.
        rows = (batches.rows(n, 0, batches.batch_size) for n in range(count))
        return evaluate(lambda batch: step(state, batch), rows, put_own, byte_lengths)

    return measure


def evaluate(
    step: Callable[[Batch], Sums],
    batches: Iterable[Mapping[str, Any]],
    put: Callable[[Mapping[str, Any]], Batch],
    byte_lengths: np.ndarray | None = None,
) -> dict[str, float]:
    """Metrics over all batches; means are over tokens, not over batches.

        loss = Σ w·nll / Σ w,   perplexity = exp(loss)
        bits per byte = Σ w·nll / ln 2 / Σ (w > 0)·bytes(target)

    The nats of predicting the end of a document count, although it stands for no byte.

    Returns:
        `eval/loss, eval/perplexity, eval/bits_per_byte, eval/accuracy, eval/tokens`.
    """
    total: dict[str, list[float]] = {}
    bytes_seen, pending = 0, None
    for batch in batches:
        bytes_seen += 0 if byte_lengths is None else count_bytes(batch, byte_lengths)
        sums = step(put(batch))
        if pending is not None:
            _add(total, pending)
        pending = sums
    if pending is not None:
        _add(total, pending)
    numerator, weight = total.get("nll", total.get("loss", [0.0, 0.0]))
    loss = numerator / weight if weight else math.nan
    found = {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}
    if bytes_seen:
        found["eval/bits_per_byte"] = numerator / math.log(2) / bytes_seen
    for name, (top, bottom) in total.items():
        if name not in ("loss", "nll") and bottom:
            found[f"eval/{name}"] = top / bottom
    found["eval/tokens"] = weight
    return found


def count_bytes(batch: Mapping[str, Any], byte_lengths: np.ndarray) -> int:
    """UTF-8 bytes of the targets of a batch that carry weight."""
    targets = np.asarray(batch["targets"])
    return int(np.where(np.asarray(batch["weights"]) > 0, byte_lengths[targets], 0).sum())


def _add(total: dict[str, list[float]], sums: Sums) -> None:
    for name, (numerator, denominator) in jax.device_get(sums).items():
        entry = total.setdefault(name, [0.0, 0.0])
        entry[0] += float(numerator)
        entry[1] += float(denominator)
