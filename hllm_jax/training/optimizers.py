"""Optimizers by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from hllm_jax.parallel.state import flatten, unflatten
from hllm_jax.training.config import OptimizerConfig, ScheduleConfig
from hllm_jax.training.moments import with_state_dtype
from hllm_jax.training.schedules import Schedule, make_schedule

#: Last names of variables that are vectors even when a scan has stacked them into a matrix.
VECTORS = ("scale", "bias", "magnitude")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An Optax transformation at learning rate 1, and the schedule that scales it.

    The learning rate stays outside, so that it is a function of `TrainState.step` alone: a run that is
    resumed with more steps, or that skipped an update, is where its schedule says.

    Attributes:
        transform: at learning rate 1.
        schedule: the learning rate by update.
        master_dtype: of the copy of the parameters that is updated; None: there is none.
        offload: the state waits in the memory of the host; `parallel.Layout` places it there.
    """

    transform: optax.GradientTransformation
    schedule: Schedule
    master_dtype: DTypeLike | None = None
    offload: bool = False

    def init(self, params: Any) -> Any:
        """The optimizer state for these trainable variables."""
        if self.master_dtype is None:
            return self.transform.init(params)
        master = _cast(params, self.master_dtype)
        return {"master": master, "moments": self.transform.init(master)}

    def update(self, gradients: Any, state: Any, params: Any, step: jax.Array) -> tuple[Any, Any]:
        """One update.

        Args:
            gradients: of the loss over the whole global batch, like `params`.
            state: of the optimizer.
            params: the trainable variables.
            step: int32 scalar, the update's number, from 0.

        Returns:
            The new variables, in their own dtypes, and the new state.
        """
        if self.master_dtype is not None:
            gradients = _cast(gradients, self.master_dtype)
            moved_master, moments = Optimizer(self.transform, self.schedule).update(
                gradients, state["moments"], state["master"], step
            )

            def rounded(new: jax.Array, old: jax.Array) -> jax.Array:
                return new.astype(old.dtype)

            params = jax.tree.map(rounded, moved_master, params)
            return params, {"master": moved_master, "moments": moments}
        updates, state = self.transform.update(gradients, state, params)
        rate = self.schedule(step)

        def moved(parameter: jax.Array, update: jax.Array) -> jax.Array:
            return (parameter + rate * update).astype(parameter.dtype)

        return jax.tree.map(moved, params, updates), state


def make_optimizer(config: OptimizerConfig, schedule: ScheduleConfig, steps: int) -> Optimizer:
    """The optimizer of a run of so many updates; clipping is by the norm of the whole global gradient."""
    b1, b2 = config.betas
    decay, mu = config.weight_decay, jnp.float32
    if config.name == "adamw":
        main = optax.adamw(1.0, b1, b2, config.eps, mu_dtype=mu, weight_decay=decay, mask=decays)
    elif config.name == "lion":
        main = optax.lion(1.0, b1, b2, mu_dtype=mu, weight_decay=decay, mask=decays)
    elif config.name == "muon":
        # Updates have the root mean square of AdamW's, whose learning rates carry over (Liu et al. 2025).
        main = optax.contrib.muon(
            1.0,
            beta=0.95,
            weight_decay=decay,
            mu_dtype=mu,
            adam_b1=b1,
            adam_b2=b2,
            adam_learning_rate=1.0,
            muon_weight_dimension_numbers=hidden_matrices,
            consistent_rms=0.2,
        )
    else:
        # Steps are relative to the scale of each parameter, as in the paper; `betas` and `eps` do not apply.
        main = optax.chain(
            optax.adafactor(learning_rate=None, weight_decay_rate=None),
            optax.add_decayed_weights(-decay, decays),
        )
    clip = [] if config.clip_norm is None else [clip_by_global_norm(config.clip_norm)]
    main = with_state_dtype(main, config.state_dtype, VECTORS)
    transform = optax.chain(*clip, main)
    return Optimizer(transform, make_schedule(schedule, steps), config.master_dtype, config.offload)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, scaling by one factor: its quotients XLA writes to memory first."""

    def clipped(updates: Any, params: Any) -> Any:
        del params
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < limit, 1.0, limit / norm)

        def scaled(update: jax.Array) -> jax.Array:
            return update * factor.astype(update.dtype)

        return jax.tree.map(scaled, updates)

    return optax.stateless(clipped)


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    """The same in `dtype`; shapes stay shapes."""

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        # A copy even where nothing changes: both are donated to the next step.
        return jnp.array(leaf, dtype, copy=True)

    return jax.tree.map(cast, tree)


def decays(params: Mapping[str, Any]) -> Any:
    """Weight decay mask: matrices yes, norms and biases no, whether or not a scan has stacked them."""
    flat = flatten(params)
    return unflatten({path: leaf.ndim > 1 and path[-1] not in VECTORS for path, leaf in flat.items()})


def hidden_matrices(params: Any) -> Any:
    """For Muon: which axes of each weight are its input and which its output, None for AdamW.

    A kernel is an input and an output, of which one may be a pair of axes (`[D, H, h]`, and `[H, h, D]` for
    the output of attention); an axis that a scan has put in front, and that of the experts of a mixture, is a
    batch of matrices. Embedding, head and vectors go to AdamW (Jordan et al. 2024).
    """

    def axes(path: tuple[str, ...], leaf: Any) -> Any:
        if path[-1] != "kernel" or "head" in path:
            return None
        lead = (1 if "layers" in path else 0) + (1 if "experts" in path and "router" not in path else 0)
        rank = leaf.ndim - lead
        if rank == 2:
            return optax.contrib.MuonDimensionNumbers((lead,), (lead + 1,))
        if rank == 3 and "out" in path:
            return optax.contrib.MuonDimensionNumbers((lead, lead + 1), (lead + 2,))
        if rank == 3:
            return optax.contrib.MuonDimensionNumbers((lead,), (lead + 1, lead + 2))
        return None

    flat = flatten(params)
    return unflatten({path: axes(path, leaf) for path, leaf in flat.items()})
