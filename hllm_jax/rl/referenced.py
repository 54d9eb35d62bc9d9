"""Log-probabilities of a reference for all pairs, computed once and kept in the run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hllm_jax.data.batches import Batches
from hllm_jax.data.errors import DataError
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.state import TrainState, Tree, merge
from hllm_jax.rl.dpo import PRECOMPUTED, Preferences
from hllm_jax.training.platform import is_coordinator


class ReferencedBatches:
    """Batches of pairs with what the reference says of them, `reference_chosen` and `reference_rejected`.

    A pure function of n, as the batches themselves.

    Args:
        batches: of pairs.
        table: float32 `[pairs, 2]`, by the number of the pair in its data.
    """

    def __init__(self, batches: Batches, table: np.ndarray) -> None:
        self.batches, self.table = batches, table
        self.batch_size = batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        """Global batch n."""
        return self.rows(n, 0, self.batch_size)

    def rows(self, n: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows `start` to `stop` of global batch n."""
        found = dict(self.batches.rows(n, start, stop))
        numbers = pairs_of(self.batches, n, start, stop)
        known = np.where(numbers[:, None] >= 0, self.table[numbers], 0.0).astype(np.float32)
        return found | dict(zip(PRECOMPUTED, known.T, strict=True))


def pairs_of(batches: Batches, n: int, start: int, stop: int) -> np.ndarray:
    """int [rows]: the number of the pair in each row of batch n; -1 for an empty row."""
    rows = (batches.segments(n * batches.batch_size + row)[2] for row in range(start, stop))
    return np.array([segments[0].document if segments else -1 for segments in rows], np.int64)


def with_reference(
    batches: Batches,
    path: Path,
    state: TrainState | None,
    layout: Layout,
    preferences: Preferences,
    say: Callable[[str], None] = print,
) -> ReferencedBatches:
    """The batches with the reference's log-probabilities, computed now or read from `path`.

    Args:
        batches: of pairs; one epoch of them has every pair once.
        path: an .npz file of the run folder.
        state: before the first update, its policy is the reference; None: the run is resumed.
        layout: of the state.
        preferences: say how answers are read.
        say: prints a line.

    Raises:
        DataError: the file is not there, or is of other data; or sources are mixed by weight, so that no
            epoch has all pairs.
    """
    if batches.mixture is not None:
        raise DataError("dpo.reference: precomputed is for sources without weights, every pair once an epoch")
    wanted = json.dumps([batches.data.fingerprint, batches.sequence_length, preferences.config.loss])
    if state is None:
        if not path.is_file():
            raise DataError(
                f"{path} is gone: it holds what the first weights say of every pair, and these are trained "
                "now; begin another run"
            )
        with np.load(path) as saved:
            if str(saved["of"]) != wanted:
                raise DataError(f"{path} was computed for other pairs than those of this config")
            return ReferencedBatches(batches, saved["table"])
    table = np.zeros((len(batches.streams[0].documents.lengths), 2), np.float32)
    seen = np.zeros(len(table), bool)
    read = reader(layout, preferences)
    count = -(-batches.rows_per_epoch // batches.batch_size)
    for n in range(count):
        numbers = pairs_of(batches, n, 0, batches.batch_size)
        found = read(state, batches.rows(n, 0, batches.batch_size))
        table[numbers[numbers >= 0]] = found[numbers >= 0]
        seen[numbers[numbers >= 0]] = True
    say(f"reference: log-probabilities of {int(seen.sum()):,} pairs, computed once, are in {path}")
    if is_coordinator():
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, table=table, of=np.array(wanted))
        os.replace(partial, path)
    return ReferencedBatches(batches, table)


def reader(layout: Layout, preferences: Preferences) -> Callable[[TrainState, Any], np.ndarray]:
    """The compiled `(state, global batch) -> float32 [B, 2]`, what the policy says of both answers."""

    def both_sides(trainable: Tree, frozen: Tree, batch: Any) -> tuple[jax.Array, jax.Array]:
        with layout.activations():
            found = preferences.reference(merge(trainable, frozen), batch)
        return found.chosen, found.rejected

    jitted = jax.jit(both_sides, out_shardings=NamedSharding(layout.mesh, PartitionSpec()))

    def read(state: TrainState, batch: Any) -> np.ndarray:
        local = layout.local_rows(len(batch["pair_weights"]))
        rows = layout.put({name: array[local] for name, array in batch.items()})
        return np.stack(jax.device_get(jitted(state.trainable, state.frozen, rows)), axis=1)

    return read
