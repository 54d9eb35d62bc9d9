"""The layers of a model as stages of a pipeline: GPipe, and the circular schedule.

A batch is cut into M microbatches, which pass the S stages one behind the other (Huang et al. 2019). Layers
are dealt out in R rounds (Narayanan et al. 2021, section 2.2): a stage holds R runs of layers instead of one
long one, and a microbatch goes around the ring of stages R times. GPipe is the case R = 1. With S = 2, M = 3,
R = 2 (digits are microbatches, letters the rounds):

    tick     0   1   2   3   4   5   6
    stage 0  0a  1a  2a  0b  1b  2b  .
    stage 1  .   0a  1a  2a  0b  1b  2b

A device is idle for S - 1 of the R·M + S - 1 ticks: that share is the bubble. Each tick is one run of layers
on one microbatch, and then every stage sends what it made to the next. One program does this on all devices
(`jax.shard_map` over `stage`), the backward pass is its derivative, with the ticks in reverse; so no stage
starts backwards before all went forwards, and what each tick was given is kept until then: the stream alone,
the layers are computed again from it (GPipe, section 2.3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from hllm_jax.nn.axes import Layer, constrain, on_shards
from hllm_jax.parallel.config import PipelineConfig

AXIS = "stage"


class Pipeline:
    """Applies a stack of layers that lies on the stages of a mesh; it is a `nn.axes.Stack`.

    Args:
        config: microbatches and rounds.
        stages: size of the mesh axis `stage`.
        sums_in: dtype in which devices add up; None for that of the stream.
    """

    def __init__(self, config: PipelineConfig, stages: int, sums_in: Any = None) -> None:
        self.stages = stages
        self.repeats = config.repeats
        self.microbatches = config.microbatches_of(stages)
        self.sums_in = sums_in

    def __call__(self, layer: Layer, weights: Any, x: jax.Array, context: Any, key: Any) -> jax.Array:
        """`[B, L, D]` -> `[B, L, D]` by all layers; arguments as `nn.axes.Stack`.

        Args:
            layer: applies one layer.
            weights: tree of arrays `[layers, …]`, in the order of the layers.
            x: `[B, L, D]`.
            context: tree of what the layers are given beside it: `[B, …]`, or the same for all rows.
            key: of dropout, from which each layer and microbatch folds its own; or None.

        Raises:
            ValueError: rows that do not divide into microbatches and over the stages.
        """
        rows = x.shape[0]
        if rows % math.lcm(self.microbatches, self.stages):
            raise ValueError(
                f"{rows} rows do not divide into {self.microbatches} microbatches and over {self.stages} "
                f"stages: a multiple of {math.lcm(self.microbatches, self.stages)} would"
            )
        run = functools.partial(self._run, layer, nn.get_logical_axis_rules())
        by_stage, everywhere = PartitionSpec(AXIS), PartitionSpec()
        mapped = jax.shard_map(
            run,
            in_specs=(by_stage, by_stage, by_stage, everywhere, everywhere),
            out_specs=by_stage,
            axis_names={AXIS},
            check_vma=False,
        )
        return mapped(jnp.arange(self.stages, dtype=jnp.int32), weights, x, context, key)

    # -- inside of the mapped function: arrays are those of one stage ----------------------------------------

    def _run(
        self, layer: Layer, rules: Any, number: jax.Array, weights: Any, x: jax.Array, context: Any, key: Any
    ) -> jax.Array:
        stage, M, R = number[0], self.microbatches, self.repeats
        left = [(name, tuple(axis for axis in over or () if axis != AXIS) or None) for name, over in rules]
        with nn.logical_axis_rules(left):
            weights = self._dealt(weights, stage)
            sums, weights = jax.tree.map(gradient_of, weights), jax.lax.stop_gradient(weights)
            store = cut(self._gathered(x), M)
            rows = store.shape[0] * store.shape[1]
            # What is the same for all rows is the same for all microbatches.
            leaves, form = jax.tree.flatten(context)
            by_rows = [leaf.shape[0] == rows for leaf in leaves]
            parts = [cut(leaf, M) if split else leaf for leaf, split in zip(leaves, by_rows, strict=True)]

            def at(
                turn: jax.Array, x: jax.Array, weights: Any, sums: Any, parts: list[jax.Array], key: Any
            ) -> jax.Array:
                """What this stage makes of a microbatch in its turn."""
                micro, round_ = turn % M, turn // M
                given = [part[micro] if split else part for part, split in zip(parts, by_rows, strict=True)]
                if key is not None:
                    key = jax.random.fold_in(jax.random.fold_in(key, micro), round_ * self.stages + stage)
                mine = jax.tree.map(summing, weights, sums)
                if R > 1:
                    mine = jax.tree.map(functools.partial(take, round_), mine)
                return through(layer, mine, x, jax.tree.unflatten(form, given), key)

            # Of a tick nothing is kept but the stream that came in.
            again = jax.checkpoint(at, prevent_cse=False)
            forward = [(i, (i + 1) % self.stages) for i in range(self.stages)]

            def tick(carry: tuple[jax.Array, jax.Array], time: jax.Array) -> tuple[Any, None]:
                came, store = carry
                # Before its first turn and after its last one a stage computes what nobody will read.
                turn = jnp.clip(time - stage, 0, R * M - 1)
                x = jnp.where(stage == 0, store[turn % M], came)
                came = jax.lax.ppermute(again(turn, x, weights, sums, parts, key), AXIS, forward)
                # The first stage stores what comes around, for the next round or as the result.
                ended = time - (self.stages - 1)
                place = jnp.maximum(ended, 0) % M
                store = store.at[place].set(jnp.where(ended >= 0, came, store[place]))
                return (came, store), None

            ticks = jnp.arange(R * M + self.stages - 1, dtype=jnp.int32)
            (_, store), _ = jax.lax.scan(tick, (jnp.zeros_like(store[0]), store), ticks)
            return self._scattered(joined(jnp.where(stage == 0, store, jnp.zeros_like(store))))

    def _gathered(self, x: jax.Array) -> jax.Array:
        """The rows of all stages `[B/S, L, D]` -> `[B, L, D]`."""
        gather = functools.partial(jax.lax.all_gather, axis_name=AXIS, axis=0, tiled=True)
        return _by_length(gather, x.astype(self.sums_in or x.dtype)).astype(x.dtype)

    def _scattered(self, x: jax.Array) -> jax.Array:
        """The sum over the stages, of which each gets its rows: `[B, L, D]` -> `[B/S, L, D]`."""
        scatter = functools.partial(jax.lax.psum_scatter, axis_name=AXIS, scatter_dimension=0, tiled=True)
        return _by_length(scatter, x.astype(self.sums_in or x.dtype)).astype(x.dtype)

    def _dealt(self, weights: Any, stage: jax.Array) -> Any:
        """`[layers/S, …]`, consecutive layers, to `[R, layers/(S·R), …]`: the runs of this stage by round.

        A state keeps its layers in their order, as without a pipeline; for more than one round the stages
        exchange them here, once for all microbatches.
        """
        if self.repeats == 1:
            return weights
        dealt = jax.tree.map(functools.partial(runs_of, self.repeats), weights)
        kept = jax.tree.map(functools.partial(runs_of, self.repeats), weights)
        for sent, received, pairs in exchange(self.stages, self.repeats):
            there, here = jnp.asarray(sent)[stage], jnp.asarray(received)[stage]
            send = functools.partial(_send, there=there, here=here, pairs=pairs)
            dealt = jax.tree.map(send, dealt, kept)
        return dealt


@jax.custom_vjp
def gradient_of(weight: jax.Array) -> jax.Array:
    """Zeros, never read, whose cotangent is the gradient of `weight` in float32 or wider; see `summing`."""
    return jnp.zeros(weight.shape, jnp.promote_types(weight.dtype, jnp.float32))


def _gradient_of_forward(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient_of(weight), jnp.zeros((), weight.dtype)


def _gradient_of_backward(like: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (cotangent.astype(like.dtype),)


gradient_of.defvjp(_gradient_of_forward, _gradient_of_backward)


@jax.custom_vjp
def summing(weight: jax.Array, total: jax.Array) -> jax.Array:
    """`weight`; its cotangent goes to `total`, so that microbatches are added up in the dtype of that."""
    return weight


def _summing_forward(weight: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    return weight, jnp.zeros((), total.dtype)


def _summing_backward(like: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(cotangent), cotangent.astype(like.dtype)


summing.defvjp(_summing_forward, _summing_backward)


def problems_of(config: PipelineConfig, stages: int, model: Any, execution: Any) -> list[str]:
    """What of a model is in the way of a pipeline; nothing for a single stage.

    Args:
        config: the pipeline.
        stages: how many.
        model: the architecture, a `StackConfig`; None where there is none.
        execution: how it is computed.
    """
    M, R = config.microbatches_of(stages), config.repeats
    if stages == 1:
        return []
    if not hasattr(model, "attention_pattern"):
        return ["it has no stack of layers"]
    problems = []
    if not execution.scan_layers:
        problems.append("its layers are unrolled: model.scan_layers=true stacks them")
    if model.shared_layers:
        problems.append("all its layers are one, which every stage would need")
    if model.experts is not None:
        problems.append(
            "the losses that keep its experts balanced are not carried through a pipeline: use mesh.expert"
        )
    if R > 1 and stages > M:
        problems.append(
            f"pipeline.microbatches={M} is less than mesh.stage={stages}: with pipeline.repeats={R} the "
            f"first would be back before the last has left; {stages} at least"
        )
    period = len(model.attention_pattern)
    for name in ("layers", "decoder_layers"):
        layers = getattr(model, name, None)
        if layers is None or model.shared_layers or layers // period % (stages * R) == 0:
            continue
        unit = stages * R * period
        near = sorted({max(unit, layers // unit * unit), (layers // unit + 1) * unit})
        problems.append(
            f"{name}={layers} does not divide into mesh.stage={stages} x pipeline.repeats={R}"
            + (f" x {period} (its pattern)" if period > 1 else "")
            + f" = {unit} runs; {' or '.join(map(str, near))} would"
        )
    return problems


def exchange(stages: int, rounds: int) -> list[tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]]:
    """How runs of layers come from where they are kept to where they are used.

    Run c of the S·R runs is kept by stage c // R and used by stage c % S in round c // S. In each of R steps
    every stage sends one run and receives one.

    Returns:
        For each step the index of the run that each stage sends (among those it keeps), the round of the run
        that each receives, and the pairs (from, to): a permutation of the stages.
    """
    # In step i stage s sends its run i, shifted by one whenever the targets s·R mod S begin to repeat.
    period = stages // math.gcd(stages, rounds)
    steps = []
    for i in range(rounds):
        sent = np.array([(i + s // period) % rounds for s in range(stages)], np.int32)
        runs = np.arange(stages) * rounds + sent
        received = np.zeros(stages, np.int32)
        received[runs % stages] = runs // stages
        steps.append((sent, received, [(s, int(run % stages)) for s, run in enumerate(runs)]))
    return steps


def _send(
    into: jax.Array, kept: jax.Array, there: jax.Array, here: jax.Array, pairs: list[tuple[int, int]]
) -> jax.Array:
    return into.at[here].set(jax.lax.ppermute(kept[there], AXIS, pairs))


def runs_of(count: int, layers: jax.Array) -> jax.Array:
    """`[layers, …]` -> `[count, layers/count, …]`."""
    return layers.reshape(count, layers.shape[0] // count, *layers.shape[1:])


def take(index: jax.Array, stacked: jax.Array) -> jax.Array:
    """An entry of a stack."""
    return stacked[index]


def through(layer: Layer, weights: Any, x: jax.Array, context: Any, key: Any) -> jax.Array:
    """A run of layers on one microbatch."""

    def body(x: jax.Array, each: tuple[jax.Array, Any]) -> tuple[jax.Array, None]:
        number, variables = each
        return layer(variables, x, context, None if key is None else jax.random.fold_in(key, number)), None

    count = jax.tree.leaves(weights)[0].shape[0]
    x, _ = jax.lax.scan(body, x, (jnp.arange(count, dtype=jnp.int32), weights))
    return x


def _by_length(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A collective by each device for its positions; the compiler would put the rows together first."""
    return on_shards(function, (x,), ((None, "length"),), (None, "length"))


def cut(rows: jax.Array, parts: int) -> jax.Array:
    """`[B, …]` -> `[M, B/M, …]`: microbatch m gets the rows m, m + M, …, as in `training.step.split_rows`."""
    cut = jnp.moveaxis(rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 1, 0)
    return constrain(cut, *(None, "batch", "length", *[None] * cut.ndim)[: cut.ndim])


def joined(cut: jax.Array) -> jax.Array:
    """The inverse of `cut`."""
    return jnp.moveaxis(cut, 0, 1).reshape(cut.shape[0] * cut.shape[1], *cut.shape[2:])
