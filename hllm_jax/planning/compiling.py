"""What a configuration will need on devices that are not here: the train step itself, compiled for them.

Memory, arithmetic and collectives come from the compiler; only the time is a model (a roofline).
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from typing import TYPE_CHECKING, Any

from hllm_jax.parallel.overlap import set_flags
from hllm_jax.parallel.planning.topology import Topology, devices_of, parse_topology

if TYPE_CHECKING:
    from hllm_jax.models.spec import Spec
    from hllm_jax.parallel.layout import Layout
    from hllm_jax.parallel.planning.hlo import Collective
    from hllm_jax.parallel.planning.refusal import Refusal
    from hllm_jax.parallel.planning.roofline import Roofline


class PlanError(ValueError):
    """A configuration that cannot be planned."""


@dataclasses.dataclass(frozen=True)
class PerDevice:
    """Bytes of a device.

    Attributes:
        arguments: state and batch, without what waits on the host.
        host: what waits in the memory of the host (`optimizer.offload`).
        temporaries: what the program allocates beside them; they are not all live at once.
        peak: the most that is live at once.
        capacity: of the chip.
    """

    arguments: int
    temporaries: int | None
    peak: int | None
    capacity: int
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a train step needs.

    Attributes:
        config: the name of the configuration.
        topology: the chips.
        devices: how many.
        mesh: sizes of its axes that are not 1.
        strategy: of the configuration.
        parameters: of the model.
        per_device: memory.
        states: bytes a device of `params`, `grads` and `optimizer`.
        collectives: of a step, of one device.
        flops: of a step, of one device, as compiled; None where the compiler refused.
        model_flops: of a step, of one device, as the model needs them.
        recomputed: share of `flops` that the backward pass computes again.
        fits: the compiler accepted it, and the peak is below the capacity.
        roofline: predicted times; None where the compiler refused.
        tokens: of a step.
        measured_at: depths at which flops, collectives and temporaries were measured where the compiler
            refused the whole, see `depth.py`.
        budget: tokens to train on, days that takes (by C = 6ND at the predicted rate) and steps.
        refusal: the compiler's words, where it refused.
        advice: what to change, where it does not fit.
        compile_seconds: how long the compiler took.
        pipeline: `PipelineConfig.facts`, where there are stages. What a stage computes while it is idle, and
            nobody reads, is among `flops`, and so in the predicted time.
        roles: `states` of each of several models in the state (`base`: what they share); None: there is one.
    """

    config: str
    topology: str
    devices: int
    mesh: dict[str, int]
    strategy: str
    parameters: int
    per_device: PerDevice
    states: dict[str, int]
    collectives: list[Collective]
    flops: float | None
    model_flops: float
    recomputed: float | None
    fits: bool
    roofline: Roofline | None
    tokens: int
    measured_at: tuple[int, ...] | None
    budget: dict[str, float]
    refusal: str | None
    advice: list[str]
    compile_seconds: float
    pipeline: dict[str, Any] | None = None
    roles: dict[str, dict[str, int]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return dataclasses.asdict(self)


def plan(
    config: Any, topology: str | Topology, *, slices: int = 1, tokens: float | None = None, name: str = ""
) -> Plan:
    """Compile the train step of a configuration for a topology, and read off what it needs.

    Args:
        config: of a recipe (`load_run_config(path)[1]`), or the path of a configuration.
        topology: e.g. `v5p:4x4x4`, `v5e:2x4`, `h100:8`.
        slices: so many of them.
        tokens: a budget; None: those of the run (`train.steps`).
        name: how the plan calls the configuration.

    Raises:
        TopologyError: it is not known, or the compiler for it is not installed.
        PlanError: the recipe has no `make_step`.
        MeshError, LayoutError: the model does not divide over so many devices.
    """
    from hllm_jax.recipes import load_recipe, load_run_config

    if isinstance(config, str):
        name, config = name or config, load_run_config(config)[1]
    recipe = load_recipe(config.recipe)
    if not hasattr(recipe, "make_step"):
        raise PlanError(
            f"the recipe {config.recipe} has no function make_step(config, model, mesh, steps), which a plan "
            "compiles; train/pretrain.py shows one"
        )
    chips = topology if isinstance(topology, Topology) else parse_topology(topology, slices)
    if config.run.overlap:
        set_flags(chips.chip.platform, os.environ)
    spec = spec_of_run(config, recipe)
    return Planning(recipe, config, chips, devices_of(chips), spec, name).plan(tokens)


def spec_of_run(config: Any, recipe: Any = None) -> Spec:
    """The architecture that a run of this configuration trains, a new head included: that of its task, or the
    one that the function `make_head` of its recipe gives it.

    Raises:
        PlanError: the classes of the task stand only in its data, which a plan does not read.
    """
    from hllm_jax.inspection import spec_of_config

    spec, task = spec_of_config(config), getattr(config, "task", None)
    if task is None:
        return recipe.make_head(config, spec) if hasattr(recipe, "make_head") else spec
    from hllm_jax.training.head import with_head

    if task.kind != "span" and not task.labels:
        raise PlanError("task.labels: a plan reads no data, so it has to be told the classes")
    return with_head(spec, task.kind, task.labels)


class Planning:
    """One configuration on one topology."""

    def __init__(
        self, recipe: Any, config: Any, topology: Topology, devices: list[Any], spec: Spec, name: str = ""
    ) -> None:
        from hllm_jax.nn.target import compiling_for
        from hllm_jax.parallel.mesh import make_mesh

        self.recipe, self.config, self.topology, self.name = recipe, config, topology, name
        self.devices, self.spec = devices, spec
        self.mesh = make_mesh(config.mesh, config.strategy, devices, slices=topology.slices)
        with compiling_for(topology.chip.platform):
            model = self.spec.build(config.model.execution.resolve())
            steps = config.train.steps or 1
            try:
                _, self.layout, self.step = recipe.make_step(config, model, self.mesh, steps)
            except RuntimeError as error:  # of tracing the model for its shapes
                raise self._stopped(error) from error

    def plan(self, tokens: float | None) -> Plan:
        from hllm_jax.parallel.planning.roofline import step_time
        from hllm_jax.planning.depth import continued, measure

        chip, layout = self.topology.chip, self.layout
        compiled, refusal, seconds = self.compile()
        states = states_of(layout)
        host = _local_bytes(layout.abstract_state, on_host=True)
        arguments = _local_bytes(layout.abstract_state) + _local_bytes(self._batch()) - host
        peak, measured_at = None if refusal is None else refusal.used, None
        of_step, sizes = self._tokens, dict(self.mesh.shape)
        model_flops = self._flops_per_token() * of_step / self.mesh.size
        if compiled is not None:
            memory = compiled.memory_analysis()
            peak, arguments = int(memory.peak_memory_in_bytes), int(memory.argument_size_in_bytes)
            host = int(memory.host_argument_size_in_bytes)
            cost = measure(compiled, sizes, self.topology.slices)
        else:
            cost, measured_at = continued(self)
        times = None
        if cost is not None:
            times = step_time(self.topology, sizes, cost.flops, cost.traffic, cost.collectives, model_flops)
        fits = compiled is not None and peak is not None and peak <= chip.memory
        return Plan(
            config=self.name or self.config.recipe,
            topology=self.topology.name + (f" x {self.topology.slices}" if self.topology.slices > 1 else ""),
            devices=self.mesh.size,
            mesh={axis: size for axis, size in self.mesh.shape.items() if size > 1},
            strategy=self.config.strategy,
            parameters=self.spec.parameters(),
            per_device=PerDevice(arguments, cost.temporaries if cost else None, peak, chip.memory, host),
            states=states,
            roles=roles_of(layout),
            collectives=cost.collectives if cost else [],
            flops=cost.flops if cost else None,
            model_flops=model_flops,
            recomputed=cost.recomputed / cost.flops if cost else None,
            fits=fits,
            roofline=times,
            tokens=of_step,
            measured_at=measured_at,
            budget=self._budget(tokens, times),
            refusal=None if refusal is None else refusal.words,
            advice=[] if fits else self._advice(states),
            compile_seconds=seconds,
            pipeline=layout.pipeline.facts(self.mesh.shape["stage"]),
        )

    def compile(self) -> tuple[Any, Refusal | None, float]:
        """The compiled step or why there is none, and the seconds that it took.

        Raises:
            PlanError: the compiler stopped for another reason than memory.
        """
        from hllm_jax.parallel.planning.refusal import read_refusal

        begun = time.perf_counter()
        try:
            compiled = self.step.lower(self.layout.abstract_state, self._batch()).compile()
        except RuntimeError as error:
            refusal = read_refusal(str(error))
            if refusal is None:
                raise self._stopped(error) from error
            return None, refusal, time.perf_counter() - begun
        return compiled, None, time.perf_counter() - begun

    def _stopped(self, error: RuntimeError) -> PlanError:
        """Why there is no program, where it is not for want of memory."""
        words = str(error).strip().splitlines()
        said = words[0][:300].rstrip(".") if words else type(error).__name__
        remedy = ""
        if self.topology.chip.platform == "gpu" and "cudnn" in said.lower():
            remedy = "; cuDNN comes with `make setup EXTRAS=cuda12`, model.attention=plain plans without it"
        return PlanError(
            f"the step could not be compiled for {self.topology.name}, not for want of memory: {said}{remedy}"
        )

    def with_layers(self, layers: int, topology: Topology, devices: list[Any]) -> Planning:
        """The same for a model of so many layers on other chips."""
        spec = dataclasses.replace(self.spec, layers=layers)
        return Planning(self.recipe, self.config, topology, devices, spec)

    # -- parts --------------------------------------------------------------------------------------------

    def _batch(self) -> dict[str, Any]:
        """The shapes of a batch, with their shardings."""
        import jax

        from hllm_jax.data.objective import ObjectiveConfig
        from hllm_jax.data.shapes import batch_shapes, pair_shapes, prompt_shapes, task_shapes

        train = self.config.train
        if (rollout := getattr(self.config, "rollout", None)) is not None:
            shapes = prompt_shapes(train.batch_size, rollout.prompt_window)
        elif (task := getattr(self.config, "task", None)) is not None:
            shapes = task_shapes(task, train.batch_size, train.sequence_length)
        elif hasattr(self.config, "pairs"):
            kept = getattr(getattr(self.config, "dpo", None), "reference", "live") == "precomputed"
            shapes = pair_shapes(train.batch_size, train.sequence_length, kept)
        else:
            objective = getattr(self.config, "objective", None) or ObjectiveConfig()
            two = getattr(self.spec, "position", None) == "learned_2d"
            shapes = batch_shapes(objective, train.batch_size, train.sequence_length, two)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self.layout.sharding_of(len(shape)))
            for name, (shape, dtype) in shapes.items()
        }

    @property
    def _tokens(self) -> int:
        """Of a step: positions of encoder and decoder; with rollouts, of an update of a minibatch."""
        if (rollout := getattr(self.config, "rollout", None)) is not None:
            rows: int = self.config.train.batch_size * rollout.group // rollout.minibatches
            return rows * rollout.length
        return sum(
            math.prod(array.shape) for name, array in self._batch().items() if name.endswith("segment_ids")
        )

    def _flops_per_token(self) -> float:
        batch, frozen = self._batch(), self.layout.adapters is not None
        if (rollout := getattr(self.config, "rollout", None)) is not None:
            models = 1 + ("value" in self.layout.abstract_state.trainable)
            return models * float(self.spec.flops_per_token(rollout.length, frozen=frozen))
        lengths = [batch["chosen_tokens" if "chosen_tokens" in batch else "tokens"].shape[1]]
        if "decoder_tokens" in batch:
            lengths.append(batch["decoder_tokens"].shape[1])
        return float(self.spec.flops_per_token(*lengths, frozen=frozen))

    def _budget(self, tokens: float | None, times: Roofline | None) -> dict[str, float]:
        of_step = self._tokens
        wanted = float(tokens or of_step * (self.config.train.steps or 1))
        compute = 6.0 * self.spec.parameters() * wanted
        peak = self.topology.chip.flops * self.mesh.size
        budget = {"tokens": wanted, "steps": wanted / of_step, "flops": compute}
        budget["days_at_peak"] = compute / peak / 86400
        if times is not None and times.step:
            budget["days"] = wanted / of_step * times.step / 86400
            budget["days_without_overlap"] = wanted / of_step * times.without_overlap / 86400
        return budget

    def _advice(self, states: dict[str, int]) -> list[str]:
        """What would make it smaller, the cheapest first."""
        config, capacity = self.config, self.topology.chip.memory
        ways: list[str] = []
        if config.model.remat not in ("full", "offload"):
            ways.append("model.remat=full computes activations again instead of keeping them")
        elif config.model.remat == "full":
            ways.append("model.remat=offload keeps what goes into the blocks in the memory of the host")
        if self.spec.architecture == "decoder" and config.train.logit_chunks == 1:
            ways.append("train.logit_chunks=16 never holds all logits at once")
        rows = config.train.batch_size // config.train.accumulation
        if (fewer := rows // self.layout.least_rows) > 1:
            ways.append(f"train.accumulation={config.train.accumulation * fewer}: a row a device at once")
        if config.optimizer.state_dtype == "float32" and states["optimizer"] > capacity // 8:
            ways.append("optimizer.state_dtype=int8 keeps moments in a quarter of the bytes")
        if not self.layout.offload and states["optimizer"] > capacity // 8:
            ways.append("optimizer.offload=true keeps the optimizer's state in the memory of the host")
        if config.strategy != "zero3" and sum(states.values()) > capacity // 4:
            ways.append("strategy=zero3 leaves each device a part of every state")
        if self.mesh.shape["tensor"] == 1:
            ways.append("mesh.tensor=2 (or more) also splits the activations of wide layers")
        ways.append(f"more devices than {self.mesh.size}, or chips with more memory")
        return ways


def states_of(layout: Layout) -> dict[str, int]:
    """Bytes a device of parameters, of gradients and of the optimizer's state: shapes x shardings."""
    state = layout.abstract_state
    return {
        "params": _local_bytes(state.trainable) + _local_bytes(state.frozen),
        "grads": _local_bytes(_gradients_of(layout)),
        "optimizer": _local_bytes(state.opt_state),
    }


def roles_of(layout: Layout) -> dict[str, dict[str, int]] | None:
    """As `states_of`, apart for each of the models that a state holds (`rl/roles.py`); None: there is one."""
    import jax

    from hllm_jax.nn.adapters import COLLECTION

    state = layout.abstract_state
    first = ("params", COLLECTION)
    if not {*state.trainable, *state.frozen} - set(first):
        return None
    found: dict[str, dict[str, int]] = {}

    def count(kind: str, tree: Any, shared: bool = False) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            if keys:
                role = ("base" if shared else "policy") if keys[0] in first else str(keys[0])
                sizes = found.setdefault(role, dict.fromkeys(("params", "grads", "optimizer"), 0))
                sizes[kind] += _local_bytes(leaf)

    count("params", state.frozen, shared=True)
    count("params", state.trainable)
    count("grads", _gradients_of(layout))
    count("optimizer", state.opt_state)
    return found


def _gradients_of(layout: Layout) -> Any:
    """Shapes of the gradient, with their shardings."""
    import jax

    def placed(leaf: Any, where: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(placed, layout.abstract_state.trainable, layout.gradient_shardings)


def _local_bytes(tree: Any, on_host: bool = False) -> int:
    """Bytes of a device, or only those of them that wait on the host."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not on_host or leaf.sharding.memory_kind == "pinned_host"
    )
