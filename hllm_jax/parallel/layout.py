"""The layout of a train state: shapes and shardings first, arrays afterwards, each where it belongs."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from hllm_jax.models.config import LoRAConfig
from hllm_jax.models.layout import init_variables
from hllm_jax.models.lora import (
    Target,
    adapters_and,
    few_bits,
    in_few_bits,
    measure_columns,
    with_adapters,
)
from hllm_jax.nn.adapters import COLLECTION
from hllm_jax.nn.axes import stacking
from hllm_jax.nn.target import compiling_for
from hllm_jax.parallel.config import PipelineConfig
from hllm_jax.parallel.gather import Gathering
from hllm_jax.parallel.pipeline import Pipeline, problems_of
from hllm_jax.parallel.rules import BATCH, INPUTS, Rules, Table, mesh_axes, spec
from hllm_jax.parallel.state import (
    Predicate,
    TrainState,
    Tree,
    everything,
    flatten,
    nothing,
    split,
    unflatten,
)

Path = tuple[str, ...]

#: Makes a tree of parameters, each leaf what the function it is given makes of `(path, array)`.
Load: TypeAlias = Callable[[Callable[[str, np.ndarray], Any]], Mapping[str, Any]]

#: For programs that run once: generators of random numbers compile in half the time and run as fast.
COMPILED_ONCE: dict[str, dict[str, bool | int | str]] = {"cpu": {"xla_backend_optimization_level": 1}}


class LayoutError(ValueError):
    """Arrays that the mesh cannot hold as the rules say, or weights that are not those of the model."""


class HasInit(Protocol):
    """The part of an optimizer that a layout needs."""

    def init(self, params: Any) -> Any:
        """State for these parameters (arrays or their shapes)."""
        ...


class Layout:
    """Shapes and shardings of a `TrainState`, known before any array exists.

    Args:
        mesh: from `make_mesh`.
        rules: from `make_rules`.
        model: Linen module whose `init(key, tokens)` makes the variables.
        optimizer: anything with `init(params)`; None for a state that is only evaluated.
        trainable: predicate over variable paths; None: everything, or where there are adapters these and the
            new head that the model may have (`StackConfig.added`).
        adapters: low-rank adapters beside the model's weights.
        pipeline: how batches go through the stages of the mesh, where it has some.
        variables: makes the boxed variables of a key, where the state holds more than the model's own (other
            models on the same base); None: those of the model and its adapters.
        control: initial values of `TrainState.control`.

    Attributes:
        abstract_state: `TrainState` of `jax.ShapeDtypeStruct` that carry their sharding.
        shardings: `TrainState` of `NamedSharding`.
        gradient_shardings: shardings of the gradient of `trainable`.
        platform: of the devices of the mesh, `cpu`, `gpu` or `tpu`.
        offload: the optimizer's state waits in the memory of the host (`optimizer.offload`).

    Raises:
        LayoutError: an axis does not divide over the mesh axes that should split it, the model cannot be a
            pipeline, or there is nothing to offload to.
    """

    def __init__(
        self,
        mesh: jax.sharding.Mesh,
        rules: Rules,
        model: nn.Module,
        optimizer: HasInit | None,
        trainable: Predicate | None = None,
        adapters: LoRAConfig | None = None,
        pipeline: PipelineConfig = PipelineConfig(),
        variables: Callable[[jax.Array], Any] | None = None,
        control: Mapping[str, float] | None = None,
    ) -> None:
        self.mesh = mesh
        self.control = control
        self._make = variables
        self.pipeline = pipeline
        self.rules = rules
        self.model = model
        self.optimizer = optimizer
        self.adapters = adapters
        added: tuple[str, ...] = getattr(getattr(model, "config", None), "added", ())
        trainable = trainable or (adapters_and(added) if adapters else everything)
        self.trainable = trainable
        self.platform: str = mesh.devices.flat[0].platform
        self.offload: bool = getattr(optimizer, "offload", False)
        if self.offload and self.platform == "cpu":
            raise LayoutError(
                "optimizer.offload: the devices are CPUs, whose memory is that of the host; leave it out here"
            )
        self._once = COMPILED_ONCE.get(self.platform)

        self._few_bits: dict[str, Target] = {}
        if adapters is not None and adapters.base != "none":
            whole = jax.eval_shape(functools.partial(init_variables, model), jax.random.key(0))
            self._few_bits = few_bits(adapters, whole["params"])
        boxed = jax.eval_shape(self._variables, jax.random.key(0))
        shapes = flatten(meta.unbox(boxed))
        self._names: dict[Path, tuple[str | None, ...]] = {
            path: _padded(names, shapes[path].ndim)
            for path, names in flatten(nn.get_partition_spec(boxed)).items()
        }
        spec_of_model, execution = getattr(model, "config", None), getattr(model, "execution", None)
        check_pipeline(pipeline, mesh.shape["stage"], spec_of_model, execution)
        sizes = {path: leaf.shape for path, leaf in shapes.items()}
        check_divisible(sizes, self._names, rules, mesh.shape)

        abstract, frozen = split(unflatten(shapes), trainable)
        of_trainable, of_frozen = split(self._shardings(rules.parameters), trainable)
        self.gradient_shardings, _ = split(self._shardings(rules.gradients), trainable)
        opt_state = jax.eval_shape(optimizer.init, abstract) if optimizer else ()
        scalar = NamedSharding(mesh, PartitionSpec())
        self.shardings = TrainState(
            step=scalar,
            trainable=of_trainable,
            frozen=of_frozen,
            opt_state=self._like_parameters(opt_state, abstract),
            rng=scalar,
            control=None if control is None else dict.fromkeys(control, scalar),
        )
        shapes_of_state = TrainState(
            step=jax.ShapeDtypeStruct((), jnp.int32),
            trainable=abstract,
            frozen=frozen,
            opt_state=opt_state,
            rng=jax.ShapeDtypeStruct((2,), jnp.uint32),
            control=jax.eval_shape(self._control),
        )
        self.abstract_state: TrainState = jax.tree.map(_placed, shapes_of_state, self.shardings)

    # -- arrays ---------------------------------------------------------------------------------------------

    def init(
        self,
        seed: int,
        load: Mapping[str, Any] | Load | None = None,
        fresh: Predicate = nothing,
        others: Mapping[Path, Mapping[str, Any] | Load] | None = None,
    ) -> TrainState:
        """A fresh state, made sharded: no device ever holds a whole copy of what it should hold a part of.

        Args:
            seed: of the initial weights and of the state's `rng`. The weights do not depend on the mesh.
            load: initial weights instead: the tree of the collection `params` (NumPy or JAX arrays), or what
                makes it, handing each parameter to a function that puts it on its devices at once.
            fresh: variables that come from the seed although others are loaded (a new head); adapters do too.
            others: the same as `load` for other parts of the state: path of the part -> its tree, or what
                makes it. Without `load`, the rest comes from the seed.

        Raises:
            LayoutError: `load` or `others` have other names or shapes than the rest of the state.
        """
        rng = jax.random.key_data(jax.random.key(seed))

        def drawn(rng: jax.Array) -> Tree:
            key = jax.random.fold_in(jax.random.wrap_key_data(rng), 0)
            return meta.unbox(self._variables(key))

        if load is None and not others:
            if self._few_bits:
                raise LayoutError(
                    "lora.base: weights in few bits are read, not drawn: give the weights to load"
                )

            def begin(rng: jax.Array) -> TrainState:
                return self._state(drawn(rng), rng)

            return jax.jit(begin, out_shardings=self.shardings, compiler_options=self._once)(rng)
        flat: dict[Path, Any] = {}
        loaded = {} if load is None else {("params",): load}
        for place, part in {**loaded, **(others or {})}.items():
            tree = part(functools.partial(self._put, within=place)) if callable(part) else part
            flat |= {(*place, *path): leaf for path, leaf in flatten(tree).items()}
        given = unflatten(flat)
        wanted = flatten(self.abstract_state.variables)
        new = {
            p: leaf.sharding
            for p, leaf in wanted.items()
            if fresh(p) or (p not in flat and (load is None or COLLECTION in p[:2]))
        }
        if new:

            def only_new(rng: jax.Array) -> dict[Path, jax.Array]:
                # What is drawn for the others is not used, and so not computed.
                every = flatten(drawn(rng))
                return {path: every[path] for path in new}

            made = jax.jit(only_new, out_shardings=new, compiler_options=self._once)(rng)
            given = unflatten({**flatten(given), **made})
        variables = self.place(given)
        state = jax.jit(self._state, out_shardings=self.shardings, donate_argnums=0)
        return state(variables, rng)

    def place(self, variables: Mapping[str, Any]) -> Tree:
        """Foreign variables as sharded arrays of the model's dtypes, after a check of names and shapes."""
        given = {
            path: np.asarray(leaf) if not hasattr(leaf, "shape") else leaf
            for path, leaf in flatten(variables).items()
        }
        wanted = flatten(self.abstract_state.variables)
        compare(
            {"/".join(p): tuple(x.shape) for p, x in given.items()},
            {"/".join(p): tuple(x.shape) for p, x in wanted.items()},
            what="the weights to load",
        )
        return unflatten({path: _on_devices(given[path], want) for path, want in wanted.items()})

    def place_frozen(self, load: Load) -> dict[str, jax.Array]:
        """The frozen parameters by path, each on its devices as soon as it is read.

        Raises:
            LayoutError: names or shapes are not those of the model.
        """
        wanted = flatten(self.abstract_state.frozen["params"])
        trained = flatten(self.abstract_state.trainable.get("params", {}))
        given = {path: leaf for path, leaf in flatten(load(self._put)).items() if path not in trained}
        compare(
            {"/".join(p): tuple(x.shape) for p, x in given.items()},
            {"/".join(p): tuple(x.shape) for p, x in wanted.items()},
            what="the weights to load",
        )
        return {"/".join(path): _on_devices(given[path], want) for path, want in wanted.items()}

    def _put(self, path: str, array: np.ndarray, within: Path = ("params",)) -> Any:
        """A parameter on its devices; one that is not the model's stays, for `place` to refuse it."""
        few = self._few_bits.get(path) if within == ("params",) else None
        if few is not None and self.adapters is not None:
            kind: Any = self.adapters.base
            if tuple(array.shape) != (*few.lead, *few.shape):
                return array
            return {
                name: self._put(f"{path}/{name}", part)
                for name, part in in_few_bits(few, array, kind).items()
            }
        want = flatten(self.abstract_state.variables).get((*within, *path.split("/")))
        if want is None or want.shape != array.shape:
            return array
        return _on_devices(array, want)

    # -- batches --------------------------------------------------------------------------------------------

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of batch arrays `[B, L]`: rows over data, fsdp and expert, positions over context."""
        return self.sharding_of(2)

    def check_batch(self, batch_size: int, accumulation: int = 1) -> None:
        """Refuse a batch size that does not divide into microbatches and over the devices.

        Raises:
            LayoutError: with the nearest sizes that do.
        """
        over, stages = math.prod(self.mesh.shape[axis] for axis in BATCH), self.mesh.shape["stage"]
        unit = self.least_rows * accumulation
        if batch_size % unit:
            inside = ""
            if stages > 1:
                microbatches = self.pipeline.microbatches_of(stages)
                inside = f", each into pipeline.microbatches={microbatches} and over mesh.stage={stages}"
            near = sorted({max(unit, batch_size // unit * unit), (batch_size // unit + 1) * unit})
            raise LayoutError(
                f"train.batch_size={batch_size} does not divide into train.accumulation={accumulation} "
                f"microbatches over {over} data-parallel devices{inside}; "
                f"{' or '.join(map(str, near))} would"
            )

    @property
    def least_rows(self) -> int:
        """The fewest rows that divide over the devices, and into the microbatches of a pipeline."""
        over, stages = math.prod(self.mesh.shape[axis] for axis in BATCH), self.mesh.shape["stage"]
        return over * (math.lcm(self.pipeline.microbatches_of(stages), stages) if stages > 1 else 1)

    def local_rows(self, batch_size: int) -> slice:
        """The rows of a global batch that this process feeds."""
        index = self.batch_sharding.addressable_devices_indices_map((batch_size, self.mesh.shape["context"]))
        rows = [where[0] for where in index.values() if where is not None]
        starts = [row.start or 0 for row in rows]
        stops = [batch_size if row.stop is None else row.stop for row in rows]
        return slice(min(starts), max(stops))

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """This process's rows of a batch (NumPy) as global arrays on the mesh."""
        where = {name: self.sharding_of(rows.ndim) for name, rows in batch.items()}
        if jax.process_count() == 1:
            return {name: jax.device_put(rows, where[name]) for name, rows in batch.items()}
        make = jax.make_array_from_process_local_data
        return {name: make(where[name], rows) for name, rows in batch.items()}

    def sharding_of(self, rank: int) -> NamedSharding:
        """Of a batch array: `[B]` has a value a row, `[B, L, …]` one or several a position."""
        return NamedSharding(self.mesh, spec(("batch", "length")[:rank], INPUTS))

    @contextlib.contextmanager
    def activations(self, manual: Sequence[str] = ()) -> Generator[None]:
        """While tracing a model in here, `with_logical_constraint` means this mesh and these rules.

        The program is for the platform of the mesh, which need not be that of this process.

        Args:
            manual: mesh axes that the surrounding `shard_map` has split already.
        """
        with contextlib.ExitStack() as entered:
            entered.enter_context(compiling_for(self.platform))
            if self.mesh.size > 1:
                table = [
                    (name, tuple(axis for axis in axes if axis not in manual) or None)
                    for name, axes in self.rules.activations.items()
                ]
                if not manual:
                    entered.enter_context(jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh))
                entered.enter_context(nn.logical_axis_rules(table))
            if self.mesh.shape["stage"] > 1:
                sums_in = jnp.float32 if self.platform == "cpu" else None  # see `gathering`
                entered.enter_context(stacking(Pipeline(self.pipeline, self.mesh.shape["stage"], sums_in)))
            yield

    def gathering(self, reduce_dtype: DTypeLike = jnp.float32) -> Gathering:
        """The collectives of this layout over the axes of the batch, see `gather.py`.

        CPUs reduce in float32 whatever is asked for: their compiler (jax 0.10) stops at a bfloat16 sum.
        """
        if self.platform == "cpu":
            reduce_dtype = jnp.float32
        return Gathering(self.rules, self._names, self.mesh.shape, reduce_dtype, bool(self._few_bits))

    def on_devices(self, opt_state: Any) -> Any:
        """While tracing: the state of the optimizer in the memory of the devices."""
        if not self.offload:
            return opt_state

        def fetched(leaf: jax.Array, where: NamedSharding) -> jax.Array:
            return jax.device_put(leaf, where.with_memory_kind("device"))

        return jax.tree.map(fetched, opt_state, self.shardings.opt_state)

    def waiting(self, opt_state: Any) -> Any:
        """While tracing: the inverse of `on_devices`."""
        return jax.device_put(opt_state, self.shardings.opt_state) if self.offload else opt_state

    # -- inside ---------------------------------------------------------------------------------------------

    def _variables(self, key: jax.Array) -> Any:
        if self._make is not None:
            return self._make(key)
        variables = init_variables(self.model, key)
        if self.adapters is None:
            return variables
        return with_adapters(self.adapters, variables, jax.random.fold_in(key, 1))

    def _state(self, variables: Tree, rng: jax.Array) -> TrainState:
        if self.adapters is not None and self.adapters.dora:
            variables = measure_columns(variables)
        trainable, frozen = split(variables, self.trainable)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            frozen=frozen,
            opt_state=self.optimizer.init(trainable) if self.optimizer else (),
            rng=rng,
            control=self._control(),
        )

    def _control(self) -> dict[str, jax.Array] | None:
        if self.control is None:
            return None
        return {name: jnp.asarray(value, jnp.float32) for name, value in self.control.items()}

    def _shardings(self, table: Table) -> Tree:
        flat = {path: NamedSharding(self.mesh, spec(names, table)) for path, names in self._names.items()}
        return unflatten(flat)

    def _like_parameters(self, opt_state: Any, parameters: Tree) -> Any:
        """Each leaf that has the path and the shape of a parameter is sharded as the optimizer rules say of
        that parameter, and so are the scales of its blocks, along the axes that divide; whatever else an
        optimizer keeps (counts, factored moments) is replicated. What is offloaded waits on the host."""
        shapes = {path: leaf.shape for path, leaf in flatten(parameters).items()}
        kind = "pinned_host" if self.offload else None

        def where(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            keys = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
            owner = next((keys[i:] for i in range(len(keys)) if keys[i:] in shapes), None)
            if owner is None or leaf.ndim != len(shapes[owner]):
                return NamedSharding(self.mesh, PartitionSpec())
            over = mesh_axes(self._names[owner], self.rules.optimizer)
            ways = [math.prod(self.mesh.shape[axis] for axis in axes) for axes in over]
            split = [
                axes if axes and size % many == 0 else None
                for axes, many, size in zip(over, ways, leaf.shape, strict=True)
            ]
            return NamedSharding(self.mesh, PartitionSpec(*split), memory_kind=kind)

        return jax.tree_util.tree_map_with_path(where, opt_state)


def compare(given: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Refuse a tree whose names or shapes are not the model's, naming every difference.

    Raises:
        LayoutError: lists missing, unexpected and differently shaped arrays (the first ten of each).
    """
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & given.keys() if given[name] != wanted[name])
    if not (missing or unexpected or other):
        return
    lines = [f"{what} do not fit the model of this config:"]
    for title, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            lines.append(f"  {title}: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}")
    lines += [f"  {name}: {given[name]} there, {wanted[name]} in the model" for name in other[:10]]
    if len(other) > 10:
        lines.append(f"  … and {len(other) - 10} more of another shape")
    raise LayoutError("\n".join(lines))


def _on_devices(array: Any, want: jax.ShapeDtypeStruct) -> jax.Array:
    there = isinstance(array, jax.Array) and (array.sharding, array.dtype) == (want.sharding, want.dtype)
    return array if there else jax.device_put(np.asarray(array).astype(want.dtype, copy=False), want.sharding)


def _placed(shape: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def _padded(names: Any, rank: int) -> tuple[str | None, ...]:
    return tuple(names or ()) + (None,) * (rank - len(tuple(names or ())))


def check_pipeline(pipeline: PipelineConfig, stages: int, model: Any, execution: Any) -> None:
    """Refuse what cannot be a pipeline of so many stages.

    Raises:
        LayoutError: lists what is in the way; see `pipeline.problems_of`.
    """
    if problems := problems_of(pipeline, stages, model, execution):
        raise LayoutError(
            f"the model cannot be a pipeline of mesh.stage={stages}:\n  " + "\n  ".join(problems)
        )


def check_divisible(
    shapes: Mapping[Any, Sequence[int]],
    names: Mapping[Any, Sequence[str | None]],
    rules: Rules,
    sizes: Mapping[str, int],
) -> None:
    """Refuse a model whose axes do not divide over the mesh.

    Args:
        shapes, names: of every parameter, by its path.
        rules: of the strategy.
        sizes: of the axes of the mesh.

    Raises:
        LayoutError: with the numbers, and the nearest that do.
    """
    problems: dict[str, str] = {}
    for table in (rules.parameters, rules.gradients, rules.optimizer):
        for path, axes in names.items():
            for name, size, over in zip(axes, shapes[path], mesh_axes(axes, table), strict=True):
                ways = math.prod(sizes[axis] for axis in over)
                if size % ways:
                    fits = max(w for w in range(1, ways + 1) if size % w == 0)
                    where = path if isinstance(path, str) else "/".join(path)
                    problems[str(name)] = (
                        f"  {name} = {size} (in {where}) over {'x'.join(over)} = {ways}: "
                        f"the nearest that divides is {fits}, or {name} = {math.ceil(size / ways) * ways}"
                    )
    if problems:
        raise LayoutError("the model does not divide over the mesh:\n" + "\n".join(problems.values()))
