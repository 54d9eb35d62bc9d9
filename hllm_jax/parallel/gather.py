"""How parameters come to a device and gradients leave it: ZeRO's stages (Rajbhandari et al. 2020, section 5).

The gradient of a step is computed by each device for its own rows (`jax.shard_map` over `data` and `fsdp`;
the compiler places what the other axes of the mesh need). Every collective over these two is written here:

stage 0 (ddp)    gradients are summed over the devices at the end of the update      all-reduce          2Ψ
stage 1          … and each device gets the part whose moments it keeps              reduce-scatter       Ψ
                 the new parameters are put together by the update                   all-gather           Ψ
stage 2          a layer's gradient is scattered as soon as it is known              reduce-scatter       Ψ
                 the new parameters                                                  all-gather           Ψ
stage 3 (fsdp)   a layer's parameters are gathered where they are used,              all-gather          2Ψ
                 forwards and backwards, and their gradient scattered                reduce-scatter       Ψ

Left to itself, the compiler makes stage 1 of an all-reduce and an all-gather (3Ψ), and reduces every
microbatch.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from hllm_jax.nn.axes import GATHERED, fetching
from hllm_jax.parallel.rules import MANUAL, Rules, Table, mesh_axes
from hllm_jax.parallel.state import Tree, flatten, unflatten

Path = tuple[str, ...]

#: The mesh axes that split each axis of an array.
Split: TypeAlias = tuple[tuple[str, ...], ...]


class Partly(flax.struct.PyTreeNode):
    """A parameter that every device holds, whose gradient is that of the part (stage 2).

    Attributes:
        whole: the value.
        part: this device's slice of it, never read; its cotangent is the scattered gradient.
    """

    whole: jax.Array
    part: jax.Array


class Gathering:
    """The collectives of one layout over the mesh axes `MANUAL`.

    Args:
        rules: of the strategy.
        names: path of each variable -> names of its axes.
        shape: sizes of the mesh axes.
        reduce_dtype: gradients are summed over the devices, and over microbatches, in it.
        made: parameters are made of fewer bits where they are used.
    """

    def __init__(
        self,
        rules: Rules,
        names: Mapping[Path, Sequence[str | None]],
        shape: Mapping[str, int],
        reduce_dtype: DTypeLike = jnp.float32,
        made: bool = False,
    ) -> None:
        self.rules = rules
        self.made = made
        self.axes = tuple(axis for axis in MANUAL if shape[axis] > 1)
        self.shape = dict(shape)
        self.reduce_dtype = jnp.dtype(reduce_dtype)
        self._names = names

    def split(self, names: Sequence[str | None], table: Table) -> Split:
        """The axes of `MANUAL` that split an array whose axes have these names."""
        return tuple(tuple(axis for axis in over if axis in self.axes) for over in mesh_axes(names, table))

    def rest(self, names: Sequence[str | None]) -> Split:
        """The other axes of the mesh that split a parameter; the compiler knows of them."""
        return tuple(
            tuple(axis for axis in over if axis not in MANUAL and self.shape[axis] > 1)
            for over in mesh_axes(names, self.rules.parameters)
        )

    def specs(self, variables: Tree, table: Table) -> Tree:
        """Partition specs over `MANUAL` of a tree of variables."""
        flat = {path: spec_of(self.split(self._names[path], table)) for path in flatten(variables)}
        return unflatten(flat)

    # -- inside the mapped function: arrays are those of one device ------------------------------------------

    def differentiable(self, trainable: Tree) -> Tree:
        """What the gradient is taken of: the variables, or for stage 2 the part of each that is kept here."""
        return unflatten({p: self._part(p, leaf) for p, leaf in flatten(trainable).items()})

    def complete(self, parts: Tree, trainable: Tree) -> Tree:
        """Variables for the model, of `differentiable(trainable)` and the variables themselves."""
        of_parts, whole = flatten(parts), flatten(trainable)
        return unflatten(
            {p: Partly(whole[p], part) if self._scattered_early(p) else part for p, part in of_parts.items()}
        )

    def fetching(self) -> Any:
        """While tracing a model in here, its parameters are gathered where they are used."""
        if not self.axes:
            return fetching(None, True) if self.made else contextlib.nullcontext()
        split = (self.split(names, self.rules.parameters) for names in self._names.values())
        return fetching(self._fetch, self.made or any(any(each) for each in split))

    def reduce(self, gradients: Tree) -> Tree:
        """Sums over the devices, once an update: each keeps its part as the optimizer's rules say."""
        dtypes = {path: leaf.dtype for path, leaf in flatten(gradients).items()}
        flat = {path: leaf.astype(self.reduce_dtype) for path, leaf in flatten(gradients).items()}
        scattered: dict[Path, jax.Array] = {}
        left: dict[tuple[str, ...], dict[Path, jax.Array]] = {}
        for path, gradient in flat.items():
            now = self.split(self._names[path], self.rules.gradients)
            then = self.split(self._names[path], self.rules.optimizer)
            for dim, (before, after) in enumerate(zip(now, then, strict=True)):
                if missing := tuple(axis for axis in after if axis not in before):
                    scatter = functools.partial(_scatter_along, dim=dim, axes=missing)
                    gradient = _by_parts(scatter, self.rest(self._names[path]), gradient)
            done = {axis for over in then for axis in over}
            rest = tuple(axis for axis in self.axes if axis not in done)
            scattered[path] = gradient
            if rest:
                left.setdefault(rest, {})[path] = gradient
        for axes, group in left.items():
            scattered |= jax.lax.psum(group, axes)
        return unflatten({path: leaf.astype(dtypes[path]) for path, leaf in scattered.items()})

    # -- parts -----------------------------------------------------------------------------------------------

    def _scattered_early(self, path: Path) -> bool:
        """Stage 2: the parameter is whole, and its gradient is not."""
        whole = self.split(self._names[path], self.rules.parameters)
        return whole != self.split(self._names[path], self.rules.gradients)

    def _part(self, path: Path, leaf: jax.Array) -> jax.Array:
        if not self._scattered_early(path):
            return leaf
        split = self.split(self._names[path], self.rules.gradients)
        sizes = [size // self._ways(axes) for size, axes in zip(leaf.shape, split, strict=True)]
        return jnp.zeros(sizes, leaf.dtype)

    def _ways(self, axes: Sequence[str]) -> int:
        return math.prod(self.shape[axis] for axis in axes)

    def _fetch(self, value: Any, names: Sequence[str | None], dtype: DTypeLike) -> jax.Array:
        table = self.rules.gradients if isinstance(value, Partly) else self.rules.parameters
        way = Way(self.split(names, table), self.rest(names), self.reduce_dtype, jnp.dtype(dtype))
        if isinstance(value, Partly):
            return _scattering(way, value.whole, value.part)
        if not any(way.split):
            return value.astype(dtype)
        return checkpoint_name(_gathered(way, value), GATHERED)


class Way(NamedTuple):
    """How a parameter travels.

    Attributes:
        split: axes of `MANUAL` that split each of its axes.
        rest: the other axes of the mesh that do.
        reduce_dtype: its gradient is summed in it.
        dtype: it is used in.
    """

    split: Split
    rest: Split
    reduce_dtype: Any
    dtype: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(way: Way, part: jax.Array) -> jax.Array:
    """The whole of a parameter of which each device holds a part; it travels in the dtype it is used in."""

    def gather(whole: jax.Array) -> jax.Array:
        for dim, axes in enumerate(way.split):
            if axes:
                whole = jax.lax.all_gather(whole, axes, axis=dim, tiled=True)
        return whole

    return _by_parts(gather, way.rest, part.astype(way.dtype))


def _gathered_forward(way: Way, part: jax.Array) -> tuple[jax.Array, Any]:
    return _gathered(way, part), jnp.zeros((), part.dtype)


def _gathered_backward(way: Way, like: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (_scatter(way, cotangent).astype(like.dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scattering(way: Way, whole: jax.Array, part: jax.Array) -> jax.Array:
    """A parameter that every device holds; its cotangent goes, scattered, to the part."""
    return whole.astype(way.dtype)


def _scattering_forward(way: Way, whole: jax.Array, part: jax.Array) -> tuple[jax.Array, Any]:
    return whole.astype(way.dtype), jnp.zeros((), part.dtype)


def _scattering_backward(way: Way, like: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    part = _scatter(way, cotangent).astype(like.dtype)
    return jnp.zeros(cotangent.shape, like.dtype), part


_scattering.defvjp(_scattering_forward, _scattering_backward)


def _scatter(way: Way, cotangent: jax.Array) -> jax.Array:
    def scatter(part: jax.Array) -> jax.Array:
        for dim, axes in reversed(list(enumerate(way.split))):
            if axes:
                part = _scatter_along(part, dim, axes)
        return part

    return _by_parts(scatter, way.rest, cotangent.astype(way.reduce_dtype))


def _by_parts(function: Callable[[jax.Array], jax.Array], rest: Split, x: jax.Array) -> jax.Array:
    """`function(x)` by each device for its part along the axes that are left to the compiler, which would put
    the array together on every device first."""
    if not any(rest):
        return function(x)
    mesh = jax.sharding.get_abstract_mesh()
    left = {
        axis
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual
    }
    spec = spec_of(rest)
    return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=left, check_vma=False)(x)


def _scatter_along(x: jax.Array, dim: int, axes: tuple[str, ...]) -> jax.Array:
    """The sum over the devices, of which each keeps its part along `dim`.

    As a matrix: of higher ranks the TPU compiler makes an all-reduce, at twice the cost, to keep its layout.
    """
    lead, trail = x.shape[:dim], x.shape[dim + 1 :]
    before = (math.prod(lead),) if lead else ()
    after = (math.prod(trail),) if trail else ()
    flat = x.reshape(*before, x.shape[dim], *after)
    part = jax.lax.psum_scatter(flat, axes, scatter_dimension=len(before), tiled=True)
    return part.reshape(*lead, part.shape[len(before)], *trail)


def spec_of(split: Split) -> PartitionSpec:
    """The partition spec."""
    return PartitionSpec(*(axes or None for axes in split))
