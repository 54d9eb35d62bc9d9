"""An iteration of learning from rewards: a rollout, its scores, and the updates that learn from them.

To the loop of `training/` it is a step like any other: one "update" of the run is one iteration. Everything
that it depends on is the train state and the batch of prompts, so a run goes on exactly where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from hllm_jax.models.decoder import Decoder
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables, mean
from hllm_jax.parallel.distributed import share_error
from hllm_jax.parallel.layout import Layout, LayoutError
from hllm_jax.parallel.state import TrainState, Tree, merge
from hllm_jax.rl.config import RolloutConfig
from hllm_jax.rl.rewarding import DeviceReward, HostReward, Rows
from hllm_jax.rl.rewards.errors import RewardError
from hllm_jax.rl.rollout import Rollout, check_rollout, sample_rollout
from hllm_jax.training.loop import local_part
from hllm_jax.training.optimizers import Optimizer
from hllm_jax.training.step import COMPILER_OPTIONS, Metrics, make_update


class Experience(Protocol):
    """What is learned from a rollout: a pure function, compiled."""

    def __call__(
        self, variables: Variables, rollout: Rollout, scores: jax.Array
    ) -> tuple[dict[str, jax.Array], Sums]:
        """Arrays `[B, …]` for the loss, and what is to be logged.

        Arrays `[B]` go into the table of rollouts as well. A sum named `kl` is what the stop rule looks at.

        Args:
            variables: those of the state, with which the policy sampled, and `control` where it has some.
            rollout: B rows.
            scores: float32 `[B]`; NaN is no score: the row is to be left out.
        """
        ...


#: From `TrainState.control` (the coefficient of a KL controller) and what was logged of the rollout of an
#: iteration to the next one.
Adapt: TypeAlias = Callable[[dict[str, jax.Array], Metrics], dict[str, jax.Array]]

#: Is handed the rows of each iteration: the number of the iteration, rows, scores, and arrays `[B]` by name.
Watch: TypeAlias = Callable[[int, Rows, np.ndarray, dict[str, np.ndarray]], None]


class KLLimitError(RuntimeError):
    """The policy went further from its reference than `kl_limit` allows."""


class Iteration:
    """`(state, prompts) -> (state, metrics)` with the interface of `TrainStep`, for `training.train`.

    Three programs, each compiled once: the rollout; what is made of it and its scores; an update, which is
    run `epochs` · `minibatches` times on rows in an order drawn for every epoch.

    Args:
        model: the policy.
        layout: of the state.
        optimizer: of the state; the learning rate is that of the iteration.
        config: of rollouts and updates.
        prompts: of an iteration, P.
        stop_ids: tokens that end an answer.
        vocab: ids that the tokenizer knows.
        reward: of texts, by Python, or of tokens, by the device.
        experience: see `Experience`.
        loss: over the rows of a minibatch; variables are those of the state.
        accumulation, reduce_dtype: of each update, see `make_train_step`.
        kl_limit: largest mean of `kl` on a fresh rollout; None: none.
        save: saves the state before the run stops: at `kl_limit`, or without rewards (`Run.save`).
        adapt: see `Adapt`; the state has `control` then.
        view: from the variables of the state to those of the policy, where there are others beside it.
        watch: see `Watch`.

    Attributes:
        traces: how often each program was traced.
        lag: none: an iteration waits for its updates, so that its metrics are written before the next one,
            which may end the run.

    Raises:
        ValueError: the model cannot write such rows, or chunks do not divide.
        LayoutError: rows do not divide into minibatches, microbatches and devices, or the mesh splits rows.
    """

    lag = 0

    def __init__(
        self,
        model: Decoder,
        layout: Layout,
        optimizer: Optimizer,
        config: RolloutConfig,
        *,
        prompts: int,
        stop_ids: Sequence[int],
        vocab: int,
        reward: HostReward | DeviceReward,
        experience: Experience,
        loss: Loss,
        accumulation: int = 1,
        reduce_dtype: DTypeLike = jnp.float32,
        kl_limit: float | None = None,
        save: Callable[[TrainState], Any] = lambda state: None,
        adapt: Adapt | None = None,
        view: Callable[[Tree], Tree] = dict,
        watch: Watch | None = None,
    ) -> None:
        check_rollout(model, config)
        check_rows(layout, prompts, config, accumulation)
        self.layout, self.config, self.reward = layout, config, reward
        self.experience, self.adapt, self.view = experience, adapt, view
        self.kl_limit, self.save, self.watch = kl_limit, save, watch
        self.updates = config.epochs * config.minibatches
        self.traces: dict[str, int] = dict.fromkeys(("sample", "weigh", "update"), 0)
        self._sample_rows = functools.partial(sample_rollout, model, layout, config, stop_ids, vocab)
        self._update = make_update(loss, optimizer, layout, accumulation, reduce_dtype)
        self._everywhere = NamedSharding(layout.mesh, PartitionSpec())
        self._programs: dict[str, Any] = {}
        self._peak: int | None = None
        self._numbers: list[jax.Array] = []
        self._means = jax.jit(_means)

    # -- the three programs ---------------------------------------------------------------------------------

    def _sample(
        self, trainable: Tree, frozen: Tree, rng: jax.Array, step: jax.Array, batch: Batch
    ) -> tuple[Rollout, Rows]:
        self.traces["sample"] += 1
        variables = self.view(merge(trainable, frozen))
        rollout = self._sample_rows(variables, batch["tokens"], batch["lengths"], rng, step)
        records = jnp.repeat(batch["records"], self.config.group)
        return rollout, Rows(rollout.tokens, rollout.begins, rollout.lengths, rollout.ended, records)

    def _weigh(
        self,
        trainable: Tree,
        frozen: Tree,
        control: dict[str, jax.Array] | None,
        rollout: Rollout,
        scores: jax.Array | None,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Metrics]:
        self.traces["weigh"] += 1
        with self.layout.activations():
            variables = merge(trainable, frozen)
            if control is not None:
                variables = {**variables, "control": control}
            if isinstance(self.reward, DeviceReward):
                scores = self.reward.of_rollout(variables, rollout)
            assert scores is not None
            batch, sums = self.experience(variables, rollout, scores)
        answers = jnp.sum(rollout.actions, axis=1)
        scored = jnp.isfinite(scores)
        metrics = {
            # Of what was scored; 0 where nothing was.
            "reward": jnp.nan_to_num(jnp.mean(scores, where=scored)),
            "reward_std": jnp.nan_to_num(jnp.std(scores, where=scored)),
            "unscored": jnp.mean(1.0 - scored.astype(jnp.float32)),
            "answer_length": jnp.mean(answers),
            "ended": jnp.mean(rollout.ended.astype(jnp.float32)),
            **mean(sums),
            "tokens": jnp.sum(rollout.lengths),
        }
        of_rows = {name: array for name, array in batch.items() if array.ndim == 1}
        return batch, {"scores": scores, **of_rows}, metrics

    def _learn(
        self,
        state: TrainState,
        frozen: Tree,
        batch: Batch,
        number: jax.Array,
        seen: Metrics,
    ) -> tuple[TrainState, Metrics]:
        """Update `number` of the iteration, of whose rollout `seen` was logged; the last one counts."""
        self.traces["update"] += 1
        config = self.config
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step + 1)
        rows = next(iter(batch.values())).shape[0]
        if config.minibatches > 1:
            epoch, part = number // config.minibatches, number % config.minibatches
            order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), rows)
            size = rows // config.minibatches
            taken = jax.lax.dynamic_slice_in_dim(order, part * size, size)
            batch = {
                name: jax.lax.with_sharding_constraint(
                    jnp.take(array, taken, axis=0), self.layout.sharding_of(array.ndim)
                )
                for name, array in batch.items()
            }
        of_update = jax.random.fold_in(jax.random.fold_in(key, 0), number)
        state, metrics = self._update(state, frozen, batch, of_update)
        last = number + 1 == self.updates
        if self.adapt is not None:
            adapted = self.adapt(state.control, seen)
            control = {name: jnp.where(last, adapted[name], old) for name, old in state.control.items()}
            state = state.replace(control=control)
        return state.replace(step=state.step + last.astype(jnp.int32)), metrics

    # -- the interface of a step ----------------------------------------------------------------------------

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The next state, and the metrics of this iteration; `state` must not be used again.

        Raises:
            KLLimitError: the rollout is further from the reference than `kl_limit`; the state is saved.
            RewardError: a reward on the devices gave no answer a finite score; the state is saved. Or another
                process has no rewards; as below.
            Exception: whatever a reward of texts raises; the state is saved, unless it has not been trained.
        """
        self.compile(state, batch)
        begun = time.perf_counter()
        trainable, frozen, programs = state.trainable, state.frozen, self._programs
        rollout, rows = programs["sample"](trainable, frozen, state.rng, state.step, batch)
        jax.block_until_ready(rollout)
        sampled = time.perf_counter()

        scores = self._scores_or_stop(state, rows)
        learned, of_rows, seen = programs["weigh"](trainable, frozen, state.control, rollout, scores)
        jax.block_until_ready(seen)
        scored = time.perf_counter()
        if self.watch is not None:
            number, shown, arrays = jax.device_get((state.step, rows, of_rows))
            self.watch(int(number) + 1, shown, arrays.pop("scores"), arrays)
        self._check_seen(state, seen)

        moving = state.replace(frozen={})
        several: list[Metrics] = []
        for number in self._numbers:
            moving, metrics = programs["update"](moving, frozen, learned, number, seen)
            several.append(metrics)
        metrics = jax.block_until_ready(self._means(several))
        times = {
            "rollout_seconds": sampled - begun,
            "scoring_seconds": scored - sampled,
            "update_seconds": time.perf_counter() - scored,
        }
        host: dict[str, Any] = {name: np.float32(seconds) for name, seconds in times.items()}
        if isinstance(self.reward, HostReward):
            host |= {name: np.float32(count) for name, count in self.reward.metrics.items()}
        return moving.replace(frozen=frozen), {**metrics, **seen, **host}

    def measure(
        self,
        state: TrainState,
        batches: Sequence[Mapping[str, Any]],
        record: Callable[[int], dict[str, Any]],
    ) -> dict[str, float]:
        """What the policy's answers to other prompts are worth: held-out evaluation, nothing is learned.

        The same numbers are drawn every time, and none of those that a rollout draws.

        Args:
            state: of now.
            batches: of prompts, shaped like those of training.
            record: gives their records, which are numbered on their own (`Batches.record`).

        Returns:
            `eval/reward`, `eval/ended` and `eval/answer_length`, means over all answers.

        Raises:
            Exception: as `__call__` where rewards fail.
        """
        found: list[tuple[jax.Array, ...]] = []
        for number, prompts in enumerate(batches):
            batch = self.layout.put(local_part(self.layout, prompts))
            self.compile(state, batch)
            held_out = jax.device_put(np.asarray(-1 - number, np.int32), self._everywhere)
            rollout, rows = self._programs["sample"](
                state.trainable, state.frozen, state.rng, held_out, batch
            )
            scores = self._scores_or_stop(state, rows, record)
            _, _, seen = self._programs["weigh"](
                state.trainable, state.frozen, state.control, rollout, scores
            )
            found.append((seen["reward"], seen["ended"], seen["answer_length"]))
        means = np.mean(np.asarray(jax.device_get(found), np.float64), axis=0)
        return dict(zip(("eval/reward", "eval/ended", "eval/answer_length"), means.tolist(), strict=True))

    def compile(self, state: TrainState, batch: Batch) -> int | None:
        """Compile for these shapes, and refuse any others from now on. Once: an evaluation before the first
        iteration may have done so.

        Returns:
            The most bytes a device will hold, as far as the compiler says.
        """
        if self._programs:
            return self._peak
        lowered = self._lowered(state, batch)
        self._programs = {name: program.compile() for name, program in lowered.items()}
        self._numbers = [
            jax.device_put(np.asarray(number, np.int32), self._everywhere) for number in range(self.updates)
        ]
        analyses = [program.memory_analysis() for program in self._programs.values()]
        peaks = (int(getattr(analysis, "peak_memory_in_bytes", 0) or 0) for analysis in analyses)
        self._peak = max(peaks) or None
        return self._peak

    def lower(self, state: TrainState, batch: Mapping[str, Any]) -> jax.stages.Lowered:
        """The update for these shapes, which is what needs the most memory, ready to be compiled."""
        return self._lowered(state, batch)["update"]

    @property
    def compilations(self) -> int:
        """For how many different shapes the programs were compiled so far; one, in a healthy run."""
        return max(self.traces.values())

    # -- inside ---------------------------------------------------------------------------------------------

    def _lowered(self, state: TrainState, batch: Mapping[str, Any]) -> dict[str, jax.stages.Lowered]:
        layout, everywhere = self.layout, self._everywhere
        placed = layout.shardings
        options = COMPILER_OPTIONS.get(layout.platform)
        trainable, frozen = placed.trainable, placed.frozen

        def of_rows(array: Any) -> NamedSharding:
            return layout.sharding_of(array.ndim)

        P, W = batch["tokens"].shape
        if self.config.prompt_window != W:
            raise ValueError(f"prompts are {W} wide, rollout.prompt_window is {self.config.prompt_window}")
        rollout = _rollout_shapes(P * self.config.group, self.config.length)
        of_rollout = jax.tree.map(of_rows, rollout)
        sample = jax.jit(
            self._sample,
            in_shardings=(trainable, frozen, everywhere, everywhere, None),
            out_shardings=(of_rollout, everywhere),
            compiler_options=options,
        )
        lowered = {"sample": sample.lower(state.trainable, state.frozen, state.rng, state.step, batch)}

        rollout = jax.tree.map(_placed, rollout, of_rollout)
        scores = jax.ShapeDtypeStruct((P * self.config.group,), jnp.float32, sharding=layout.sharding_of(1))
        given = None if isinstance(self.reward, DeviceReward) else scores
        arguments = state.trainable, state.frozen, state.control, rollout, given
        learned, _, seen = jax.eval_shape(self._weigh, *arguments)
        self.traces["weigh"] -= 1  # that was for the shapes
        where = jax.tree.map(of_rows, learned)
        weigh = jax.jit(
            self._weigh,
            in_shardings=(trainable, frozen, everywhere, of_rollout, None),
            out_shardings=(where, everywhere, everywhere),
            compiler_options=options,
        )
        lowered["weigh"] = weigh.lower(*arguments)

        moving = placed.replace(frozen={})
        update = jax.jit(
            self._learn,
            donate_argnums=0,
            in_shardings=(moving, frozen, where, everywhere, everywhere),
            out_shardings=(moving, everywhere),
            compiler_options=options,
        )
        learned = jax.tree.map(_placed, learned, where)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        number, seen = jax.tree.map(functools.partial(_placed, where=everywhere), (number, seen))
        lowered["update"] = update.lower(state.replace(frozen={}), state.frozen, learned, number, seen)
        return lowered

    def _scores_or_stop(
        self, state: TrainState, rows: Rows, record: Callable[[int], dict[str, Any]] | None = None
    ) -> jax.Array | None:
        """Scores of sampled rows, computed in Python: each process scores its own. None: the device does.

        Where that fails in one process, all save the state, if it was trained, and stop. `record` gives the
        records of other prompts than those of training.
        """
        if isinstance(self.reward, DeviceReward):
            return None
        own = self.layout.local_rows(len(rows.tokens))
        reward = self.reward if record is None else dataclasses.replace(self.reward, record=record)
        found, problem = None, None
        try:
            found = reward.of_rows(Rows(*(array[own] for array in jax.device_get(rows))))
        except Exception as error:
            problem = error
        said = share_error("reward", problem)
        if said is not None:
            failure = problem or RewardError(f"the rewards of another process failed: {said}")
            try:
                if jax.device_get(state.step) > 0:
                    self._keep(state)
            except Exception as second:
                raise second from failure
            raise failure
        # Of several processes each puts its own part, which JAX does not count as asked for.
        with jax.transfer_guard("allow"):
            return self.layout.put({"scores": found})["scores"]

    def _keep(self, state: TrainState) -> None:
        """Save the state before the run stops, with the transfers that the loop forbids."""
        with jax.transfer_guard("allow"):
            self.save(state)

    def _check_seen(self, state: TrainState, seen: Metrics) -> None:
        """Stop where there is nothing to learn from, or the policy has gone too far."""
        if isinstance(self.reward, DeviceReward) and jax.device_get(seen["unscored"]) == 1:
            self._keep(state)
            raise RewardError(
                "the reward model gave no finite score to any answer: there is nothing to learn from. The "
                "state is saved; look at reward.path, and at the dtype it is computed in (model.dtype)"
            )
        if self.kl_limit is None:
            return
        kl, step = (value.item() for value in jax.device_get((seen["kl"], state.step)))
        if math.isfinite(kl) and kl <= self.kl_limit:
            return
        self._keep(state)
        raise KLLimitError(
            f"the policy has left its reference: after {step} iterations the KL is {kl:.4g} nats a token, "
            f"and kl_limit is {self.kl_limit:g}. That state is saved, and was not trained further. Look "
            "at what the reward pays for; raise the limit to go on, or begin anew (another run.dir) with a "
            "lower schedule.peak or a larger coefficient of the KL"
        )


def check_rows(layout: Layout, prompts: int, config: RolloutConfig, accumulation: int) -> None:
    """Refuse numbers of rows that do not divide, and meshes that split rows.

    Raises:
        LayoutError: with the numbers.
    """
    for axis in ("context", "stage"):
        if layout.mesh.shape[axis] > 1:
            raise LayoutError(
                f"mesh.{axis}={layout.mesh.shape[axis]}: rollouts are written token by token, so rows and "
                "layers stay whole; use data, fsdp, expert or tensor"
            )
    devices = layout.least_rows
    rows = prompts * config.group
    unit = config.minibatches * accumulation * devices
    if rows % unit:
        raise LayoutError(
            f"{prompts} prompts (train.batch_size) with {config.group} answers each (rollout.group) are "
            f"{rows} rows, which do not divide into {config.minibatches} minibatches (rollout.minibatches) "
            f"of {accumulation} microbatches (train.accumulation) over {devices} data-parallel devices: a "
            f"multiple of {unit} would"
        )
    if prompts % devices:
        raise LayoutError(
            f"train.batch_size={prompts} prompts do not divide over {devices} data-parallel devices"
        )


def _means(several: list[Metrics]) -> Metrics:
    """Of the metrics of the updates of an iteration."""
    return {
        name: jnp.mean(jnp.stack([one[name] for one in several]).astype(jnp.float32)) for name in several[0]
    }


def _rollout_shapes(rows: int, length: int) -> Rollout:
    """A rollout of `jax.ShapeDtypeStruct`."""
    make: Any = jax.ShapeDtypeStruct
    floats = make((rows, length), jnp.float32)
    tokens, lengths = make((rows, length), jnp.int32), make((rows,), jnp.int32)
    return Rollout(tokens, lengths, floats, floats, make((rows,), jnp.bool_))


def _placed(shape: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
