"""What the axes of parameters and activations are called; `parallel/` decides where each name goes.

Parameters and activations have separate names, because one mesh axis may hold the `embed` axis of the
weights (ZeRO-3) while the `embed` axis of the activations stays whole.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from hllm_jax.nn import quantised

#: Axes of parameters: set where a parameter is created (`nn.with_logical_partitioning`).
PARAMETER_AXES = (
    "layers",
    "vocab",
    "embed",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "experts",
    "positions",
    "buckets",
    "classes",
    "adapters",
    "rank",
)

#: Axes of activations: set by `constrain`.
ACTIVATION_AXES = (
    "batch",
    "length",
    "act_embed",
    "act_heads",
    "act_kv_heads",
    "act_mlp",
    "act_vocab",
    "act_experts",
    "expert_batch",  # rows of a batch where the experts are spread over the devices too
)

#: Name (`jax.ad_checkpoint.checkpoint_name`) of parameters that were gathered from other devices, or made of
#: fewer bits: what the backward pass makes again.
GATHERED = quantised.MADE

#: Makes the whole parameter of what a device holds of it: `(value, axes, dtype)`.
Fetch: TypeAlias = Callable[[Any, Sequence[str | None], DTypeLike], jax.Array]

#: Applies one layer: `(its variables, x [B, L, D], context, key or None) -> x`.
Layer: TypeAlias = Callable[[Any, jax.Array, Any, Any], jax.Array]

#: Applies a stack of layers: `(layer, variables [layers, …], x [B, L, D], context, key or None) -> x`.
Stack: TypeAlias = Callable[[Layer, Any, jax.Array, Any, Any], jax.Array]

_STACK: contextvars.ContextVar[Stack | None] = contextvars.ContextVar("stack", default=None)
_FETCH: contextvars.ContextVar[Fetch | None] = contextvars.ContextVar("fetch", default=None)
_GATHERS: contextvars.ContextVar[bool] = contextvars.ContextVar("gathers", default=False)


@contextlib.contextmanager
def fetching(fetch: Fetch | None, gathers: bool) -> Generator[None]:
    """While tracing in here, `fetch` gets what the variables hold and gives the parameter that is used.

    Args:
        fetch: see `Fetch`; None: the variables are what is used.
        gathers: whether parameters come from other devices, or are made of fewer bits.
    """
    tokens = _FETCH.set(fetch), _GATHERS.set(gathers)
    try:
        yield
    finally:
        _FETCH.reset(tokens[0])
        _GATHERS.reset(tokens[1])


def is_gathering() -> bool:
    """Whether parameters are gathered or made where they are used: the backward pass does so again."""
    return _GATHERS.get()


@contextlib.contextmanager
def stacking(stack: Stack) -> Generator[None]:
    """While tracing in here, `stack` applies the layers of a model, which lie on several devices."""
    token = _STACK.set(stack)
    try:
        yield
    finally:
        _STACK.reset(token)


def stack_of_layers() -> Stack | None:
    """What applies the layers of a model, where that is not a loop over them."""
    return _STACK.get()


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: DTypeLike,
    used_in: DTypeLike | None = None,
) -> jax.Array:
    """Declare a parameter of `module`, its axes named once and for all.

    Args:
        module: the Linen module, in `setup` or a compact method.
        name: last part of the path.
        init: initialiser `(key, shape, dtype)`.
        shape: one size per axis.
        axes: entries of `PARAMETER_AXES`, one per axis; a scan puts `layers` in front.
        dtype: it is stored in.
        used_in: the dtype that the caller casts it to, in which it travels where it is fetched; None: as it
            is stored.

    Returns:
        The parameter as it is stored, or in `used_in` where it was fetched.
    """
    assert len(shape) == len(axes), (name, shape, axes)
    fetch = _FETCH.get()
    held = module.get_variable("params", name) if module.has_variable("params", name) else None
    if isinstance(held, Mapping):
        cut = input_axes(axes)
        parts = quantised.fetched(held, fetch, axes[0], axes[cut])
        return quantised.made(parts, math.prod(shape[:cut]), used_in or dtype).reshape(shape)
    if fetch is not None and held is not None:
        whole = fetch(held, axes, used_in or dtype)
        assert whole.shape == shape, (name, whole.shape, shape)
        return whole
    return cast("jax.Array", module.param(name, nn.with_logical_partitioning(init, axes), shape, dtype))


def input_axes(axes: Sequence[str | None]) -> int:
    """How many of the axes of a kernel are its input: heads come with what each holds."""
    return 2 if axes[0] in ("heads", "kv_heads") else 1


def variable(
    module: nn.Module, collection: str, name: str, axes: tuple[str, ...], dtype: DTypeLike
) -> jax.Array:
    """A variable of another collection than `params`, made outside of the model (`nn/adapters.py`).

    Args:
        module: the Linen module; it has the variable.
        collection, name: of the variable.
        axes: as of `parameter`.
        dtype: it is used in.
    """
    value, fetch = module.get_variable(collection, name), _FETCH.get()
    return cast("jax.Array", value).astype(dtype) if fetch is None else fetch(value, axes, dtype)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` laid out as the active rules say for these axes; unchanged where no mesh or rule is active.

    Args:
        x: array with one axis per name.
        names: entries of `ACTIVATION_AXES`, or None for an axis that no rule may split.
    """
    assert x.ndim == len(names), (x.shape, names)
    return cast("jax.Array", nn.with_logical_constraint(x, names))


def split_into(name: str) -> int:
    """Into how many parts the active rules divide an axis of activations."""
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return 1
    return math.prod(mesh.shape[axis] for axis in _mesh_axes((name,))[0])


def axes_of(name: str) -> tuple[str, ...]:
    """The mapped axes that an axis of activations is divided over, for collectives inside of `on_shards`."""
    return _mesh_axes((name,))[0]


def on_shards(
    function: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    names: tuple[tuple[str | None, ...], ...],
    result: tuple[str | None, ...],
    *whole: Any,
) -> jax.Array:
    """`function(*arrays, *whole)`, by each device for what it holds, where a mesh and rules are active.

    For functions that treat the entries along the named axes apart, but so that a compiler does not see it (a
    sort, a loop, a hand-written kernel): it would gather them on every device.

    Args:
        function: gives an array.
        arrays: arrays with named axes.
        names: for each of them entries of `ACTIVATION_AXES` that rules may split, or None, one per axis; what
            is left out at the end is None.
        result: the same of what the function gives.
        whole: trees that every device needs all of (weights).
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return function(*arrays, *whole)
    ways = {name: split_into(name) for each in (*names, result) for name in each if name is not None}
    # An axis that does not divide is whole on every device.
    uneven = {
        name
        for array, each in zip(arrays, names, strict=True)
        for size, name in zip(array.shape, each, strict=False)
        if name is not None and size % ways[name]
    }

    def spec(each: tuple[str | None, ...]) -> jax.sharding.PartitionSpec:
        left = tuple(None if name in uneven else name for name in each)
        return jax.sharding.PartitionSpec(*(axes or None for axes in _mesh_axes(left)))

    mapped = jax.shard_map(
        function,
        in_specs=(*(spec(each) for each in names), *(jax.sharding.PartitionSpec() for _ in whole)),
        out_specs=spec(result),
        # All axes that are not mapped yet: a kernel that a TPU runs may not be left to the partitioner.
        axis_names={
            axis
            for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind != jax.sharding.AxisType.Manual
        },
        # The gradient of what is whole is summed over the devices either way; gradients that are written out
        # need not say of each array whether it differs between them.
        check_vma=False,
    )
    return mapped(*arrays, *whole)


def _mesh_axes(names: tuple[str | None, ...]) -> list[tuple[str, ...]]:
    """The mesh axes that the active rules give each axis of an activation."""
    spec: Any = nn.logical_to_mesh_axes(names)
    return [(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec]
