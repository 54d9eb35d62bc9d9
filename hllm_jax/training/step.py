"""The train step: one pure function for every objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables, add, mean, prepared
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.rules import BATCH
from hllm_jax.parallel.state import TrainState, Tree, merge
from hllm_jax.training.optimizers import Optimizer

#: Platform -> what its compiler is told. On a CPU, to see that the moments of an optimizer can be updated in
#: place: by default it copies them all first.
COMPILER_OPTIONS: dict[str, dict[str, bool | int | str]] = {
    "cpu": {"xla_cpu_copy_insertion_use_region_analysis": True}
}

#: Flat dict of float32 (counts: int32) scalars on the device.
Metrics: TypeAlias = dict[str, jax.Array]


class TrainStep:
    """`(state, batch) -> (state, metrics)`, compiled once; the state is donated, except what is frozen.

    See `make_train_step`.
    """

    lag = 2

    def __init__(
        self, function: Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]], layout: Layout
    ):
        moving = layout.shardings.replace(frozen={})
        everywhere = NamedSharding(layout.mesh, PartitionSpec())
        # What is frozen may be shared with other states (policy and reference): it is read and never donated.
        self.jitted = jax.jit(
            function,
            donate_argnums=0,
            in_shardings=(moving, layout.shardings.frozen, None),
            out_shardings=(moving, everywhere),
            compiler_options=COMPILER_OPTIONS.get(layout.platform),
        )
        self.compiled: jax.stages.Compiled | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The next state, and the metrics of this update; `state` must not be used again."""
        frozen = state.frozen
        call = self.compiled if self.compiled is not None else self.jitted
        state, metrics = call(state.replace(frozen={}), frozen, batch)
        return state.replace(frozen=frozen), metrics

    def compile(self, state: TrainState, batch: Batch) -> int | None:
        """Compile for these shapes, and refuse any others from now on.

        Returns:
            The most bytes a device will hold, as far as the compiler says.
        """
        self.compiled = self.lower(state, batch).compile()
        analysis = self.compiled.memory_analysis()
        peak = getattr(analysis, "peak_memory_in_bytes", 0)
        return int(peak) or None

    def lower(self, state: TrainState, batch: Mapping[str, Any]) -> jax.stages.Lowered:
        """The step for these shapes, ready to be compiled without running it."""
        return self.jitted.lower(state.replace(frozen={}), state.frozen, batch)

    @property
    def compilations(self) -> int:
        """For how many different shapes it was compiled so far; one, in a healthy run."""
        jitted: Any = self.jitted
        return int(jitted._cache_size())


def make_train_step(
    loss: Loss,
    optimizer: Optimizer,
    layout: Layout,
    accumulation: int = 1,
    reduce_dtype: DTypeLike = jnp.float32,
    before: Callable[[Variables, Batch], Batch] | None = None,
) -> TrainStep:
    """The jitted step.

        gradient = Σ_microbatches ∂(numerator of the loss) / Σ_microbatches (its denominator)

    so that any split of the global batch, over microbatches or devices, gives the gradient of the big batch,
    however unequal their token counts. Where the loss or the norm of that gradient is not finite, variables
    and optimizer state stay as they were (`metrics["skipped"]` is 1); `step` goes on all the same.

    Args:
        loss: the objective.
        optimizer: its `update` sees the gradient of the global batch.
        layout: of the state.
        accumulation: microbatches per update; divides the rows of a batch.
        reduce_dtype: gradients are summed over microbatches and devices in it.
        before: from all variables and the global batch to the batch that the loss sees: what is a mean over
            all of it is computed here, without a gradient, before it is split.

    Returns:
        The step. Its metrics are the means of the loss's sums, and `grad_norm` (before clipping),
        `learning_rate`, `tokens` (positions that hold a token, int32) and `skipped`.
    """

    update = make_update(loss, optimizer, layout, accumulation, reduce_dtype)

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step + 1)
        if before is not None:
            with layout.activations():
                batch = before(merge(state.trainable, frozen), batch)
        state, metrics = update(state, frozen, batch, key)
        return state.replace(step=state.step + 1), metrics

    return TrainStep(step, layout)


def make_update(
    loss: Loss, optimizer: Optimizer, layout: Layout, accumulation: int, reduce_dtype: DTypeLike
) -> Callable[[TrainState, Tree, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """What a step does but count: `(state, frozen, batch, key) -> (state, metrics)`, to be compiled.

    For the arguments and metrics see `make_train_step`.
    """
    total = summed_gradient(loss, layout, accumulation, reduce_dtype)

    def update(state: TrainState, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        gradients, sums = total(state.trainable, frozen, prepared(loss, batch), key)
        metrics = mean(sums)
        weight = sums["loss"][1]
        scale = jnp.where(weight == 0, 0.0, 1.0 / jnp.where(weight == 0, 1.0, weight))
        gradients = optax.tree.scale(scale, gradients)
        norm = optax.tree.norm(gradients)

        before = layout.on_devices(state.opt_state)
        trainable, opt_state = optimizer.update(gradients, before, state.trainable, state.step)
        good = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        trainable = keep(good, trainable, state.trainable)
        opt_state = layout.waiting(keep(good, opt_state, before))

        metrics["grad_norm"] = norm
        metrics["learning_rate"] = optimizer.schedule(state.step)
        metrics["tokens"] = count_tokens(batch)
        metrics["skipped"] = 1.0 - good.astype(jnp.float32)
        return state.replace(trainable=trainable, frozen={}, opt_state=opt_state), metrics

    return update


def summed_gradient(
    loss: Loss, layout: Layout, accumulation: int, reduce_dtype: DTypeLike
) -> Callable[[Tree, Tree, Batch, jax.Array], tuple[Tree, Sums]]:
    """`(trainable, frozen, batch, key) -> (gradient of the loss's numerator, sums)`, over the global batch.

    Each device works on its own rows and adds up its microbatches; then the gradient is reduced over the
    devices, once an update (with ZeRO-2 and 3: layer by layer, as soon as it is known). See
    `parallel/gather.py`. Dropout draws other numbers on each device.
    """
    over = layout.gathering(reduce_dtype)

    def gradient(parts: Tree, whole: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[Tree, Sums]:
        def numerator(parts: Tree) -> tuple[jax.Array, Sums]:
            with layout.activations(over.axes), over.fetching():
                sums = loss(merge(over.complete(parts, whole), frozen), batch, key)
            return sums["loss"][0], sums

        (_, sums), gradients = jax.value_and_grad(numerator, has_aux=True)(parts)
        return gradients, sums

    def accumulated(whole: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[Tree, Sums]:
        parts = over.differentiable(whole)
        if accumulation == 1:
            return gradient(parts, whole, frozen, batch, jax.random.fold_in(key, 0))
        several = {name: split_rows(rows, accumulation, layout, over.axes) for name, rows in batch.items()}
        first = {name: rows[0] for name, rows in several.items()}
        shapes = jax.eval_shape(gradient, parts, whole, frozen, first, key)
        begin = (wider(jax.tree.map(zeros, shapes[0]), reduce_dtype), jax.tree.map(zeros, shapes[1]))

        def body(total: tuple[Tree, Sums], part: tuple[jax.Array, Batch]) -> tuple[tuple[Tree, Sums], None]:
            number, rows = part
            gradients, sums = gradient(parts, whole, frozen, rows, jax.random.fold_in(key, number))
            return (jax.tree.map(jnp.add, total[0], gradients), add(total[1], sums)), None

        (gradients, sums), _ = jax.lax.scan(body, begin, (jnp.arange(accumulation), several))
        return in_dtypes_of(parts, gradients), sums

    if not over.axes:
        return accumulated

    def on_each_device(
        whole: Tree, frozen: Tree, batch: Batch, key: jax.Array, number: jax.Array
    ) -> tuple[Tree, Sums]:
        gradients, sums = accumulated(whole, frozen, batch, jax.random.fold_in(key, number[0]))
        return over.reduce(gradients), jax.lax.psum(sums, over.axes)

    def total(whole: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[Tree, Sums]:
        rules = layout.rules
        mapped = jax.shard_map(
            on_each_device,
            mesh=layout.mesh,
            in_specs=(
                over.specs(whole, rules.parameters),
                over.specs(frozen, rules.parameters),
                PartitionSpec(over.axes),
                PartitionSpec(),
                PartitionSpec(over.axes),
            ),
            out_specs=(over.specs(whole, rules.optimizer), PartitionSpec()),
            axis_names=set(over.axes),
            check_vma=False,
        )
        devices = jnp.arange(math.prod(layout.mesh.shape[axis] for axis in over.axes), dtype=jnp.int32)
        return mapped(whole, frozen, dict(batch), key, devices)

    return total


def make_eval_step(loss: Loss, layout: Layout) -> Callable[[TrainState, Batch], Sums]:
    """The jitted `(state, batch) -> sums` of the same objective without dropout; nothing is donated."""

    def evaluate(trainable: Tree, frozen: Tree, batch: Batch) -> Sums:
        with layout.activations():
            return loss(merge(trainable, frozen), prepared(loss, batch), None)

    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    jitted = jax.jit(evaluate, out_shardings=everywhere)
    return lambda state, batch: jitted(state.trainable, state.frozen, batch)


def keep(good: jax.Array, new: Any, old: Any) -> Any:
    """`new` where `good`, else `old`, leaf by leaf."""

    def choose(after: jax.Array, before: jax.Array) -> jax.Array:
        return jnp.where(good, after.astype(before.dtype), before)

    return jax.tree.map(choose, new, old)


def zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros of that shape and dtype."""
    return jnp.zeros(like.shape, like.dtype)


def wider(tree: Tree, dtype: DTypeLike) -> Tree:
    """The same in `dtype`, where that is the wider one."""

    def widen(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.promote_types(leaf.dtype, dtype))

    return jax.tree.map(widen, tree)


def in_dtypes_of(like: Tree, tree: Tree) -> Tree:
    """`tree` in the dtypes of `like`."""

    def cast(leaf: jax.Array, model: jax.Array) -> jax.Array:
        return leaf.astype(model.dtype)

    return jax.tree.map(cast, tree, like)


def split_rows(rows: jax.Array, parts: int, layout: Layout, manual: tuple[str, ...] = ()) -> jax.Array:
    """`[B, …]` -> `[parts, B/parts, …]`: part i gets the rows i, i + parts, …

    Each device splits the rows that it holds, so nothing is sent anywhere.
    """
    split = jnp.moveaxis(rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 1, 0)
    left = tuple(axis for axis in BATCH if axis not in manual)
    if all(layout.mesh.shape[axis] == 1 for axis in left):
        return split
    where = PartitionSpec(None, left)
    return jax.lax.with_sharding_constraint(split, where if manual else NamedSharding(layout.mesh, where))


def count_tokens(batch: Batch) -> jax.Array:
    """Positions of a batch that hold a token, those of encoder and decoder together; int32."""
    segments = [ids for name, ids in batch.items() if name.endswith("segment_ids")]
    if segments:
        return sum((jnp.sum((ids != 0).astype(jnp.int32)) for ids in segments), jnp.int32(0))
    return jnp.asarray(next(iter(batch.values())).size, jnp.int32)
