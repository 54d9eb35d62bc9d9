"""Adapters of a model: which of its weights get one, how it begins, and how it goes into the weights.

The section `lora:` of a training config, and functions over the two collections `params` and `lora`
(`nn/adapters.py` says what lies in the second). Adapters begin as nothing: B is zero, so the model with fresh
adapters is the model.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.models.config import LoRAConfig
from hllm_jax.models.layout import boxed_parameters
from hllm_jax.models.spec import Spec
from hllm_jax.nn import quantised
from hllm_jax.nn.adapters import COLLECTION, TRAINED, adapted_matrix, column_norms
from hllm_jax.nn.axes import input_axes

Tree = dict[str, Any]

_LAYER = re.compile(
    r"(?P<side>(?:encoder|decoder)/)?(?P<layer>layers(?:_\d+|/block_\d+)?|shared_layer)/(?P<rest>.+)"
)


class LoRAError(ValueError):
    """Adapters that this model cannot have, or that are not of this model."""


class Target(NamedTuple):
    """A weight that can have an adapter.

    Attributes:
        name: the same in every layer, as `targets` say it: `attention/query`.
        module: path of its module in this tree: `layers_3/attention/query`.
        axes: names of the axes of its kernel, without those of a scan.
        shape: the same of its shape.
        layers: how many are stacked; None: it is no stack.
        first, step: layer i of the stack is layer `first + i·step` of the model.
    """

    name: str
    module: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    layers: int | None
    first: int
    step: int

    @property
    def is_table(self) -> bool:
        """Whether it is looked up (an embedding), not multiplied."""
        return self.axes == ("vocab", "embed")

    @property
    def lead(self) -> tuple[int, ...]:
        """The axis that a scan has put in front, if it has."""
        return () if self.layers is None else (self.layers,)

    def named(self, *axes: str | None) -> tuple[str | None, ...]:
        """Names of the axes of an array that has such a lead."""
        return (*("layers",) * len(self.lead), *axes)

    @property
    def cut(self) -> int:
        """How many of the axes of the kernel are its input."""
        return input_axes(self.axes)

    @property
    def matrix(self) -> tuple[int, int]:
        """Sizes of the weight as one matrix: inputs and outputs."""
        return math.prod(self.shape[: self.cut]), math.prod(self.shape[self.cut :])


def begin_adapters(config: LoRAConfig, boxed: Mapping[str, Any], key: jax.Array) -> Tree:
    """Fresh adapters, boxed with the names of their axes; the same numbers in either layout of the layers.

    A is uniform as PyTorch draws a linear layer, `U(±1/√I)`, and B zero; for embeddings A is zero and
    B normal (as `peft` begins them). The `magnitude` of DoRA is zero until `measure_columns`.

    Args:
        config: the section.
        boxed: the tree under `params`, boxed (`init_variables`): arrays or their shapes.
        key: of the random numbers.

    Raises:
        LoRAError: a target that no weight has, or a weight that cannot have an adapter.
    """
    leaves: dict[str, Any] = {}
    for target in chosen(config, targets(boxed)):
        rows, columns = target.matrix
        lead = target.lead
        drawn = _draws(target, jax.random.fold_in(key, zlib.crc32(target.name.encode())))
        ends = (target.axes[0], target.axes[target.cut])
        if target.is_table:
            a = jnp.zeros((*lead, rows, config.rank))
            b = drawn(jax.random.normal, (config.rank, columns))
        else:
            a = (2 * drawn(jax.random.uniform, (rows, config.rank)) - 1) / math.sqrt(rows)
            b = jnp.zeros((*lead, config.rank, columns))
        made: dict[str, tuple[jax.Array, tuple[str, ...]]] = {
            "a": (a, (ends[0], "rank")),
            "b": (b, ("rank", ends[1])),
            "scale": (jnp.full(lead, config.scale, jnp.float32), ()),
        }
        if config.dropout:
            made["dropout"] = (jnp.full(lead, config.dropout, jnp.float32), ())
        if config.dora:
            made["magnitude"] = (jnp.zeros((*lead, columns)), (ends[1],))
        leaves |= {
            f"{target.module}/{name}": nn.LogicallyPartitioned(value, target.named(*axes))
            for name, (value, axes) in made.items()
        }
    return unflatten_dict(leaves, sep="/")


def check_adapters(config: LoRAConfig, spec: Spec) -> None:
    """Refuse adapters that an architecture cannot have, before anything is read.

    Raises:
        LoRAError: as `begin_adapters` and `few_bits`.
    """
    boxed = unflatten_dict(boxed_parameters(spec), sep="/")
    chosen(config, targets(boxed))
    few_bits(config, boxed)


def is_adapter(path: tuple[str, ...]) -> bool:
    """The predicate of what trains where there are adapters: they alone (`parallel.state.Predicate`)."""
    return path[0] == COLLECTION and path[-1] in TRAINED


def adapters_and(added: Collection[str]) -> Callable[[tuple[str, ...]], bool]:
    """The predicate of what trains where there are adapters and a new head: these and nothing else.

    Args:
        added: first parts of the names of its parameters, see `StackConfig.added`.
    """
    return lambda path: is_adapter(path) or (path[0] == "params" and path[1] in added)


def measure_columns(variables: Mapping[str, Any]) -> Tree:
    """The same variables, the `magnitude` of DoRA as the weights say that are there now."""
    adapters: dict[str, Any] = flatten_dict(dict(variables[COLLECTION]), sep="/")
    params = _weights(variables["params"])
    for path, leaf in adapters.items():
        module, _, name = path.rpartition("/")
        if name == "magnitude":
            rows = adapters[f"{module}/a"].shape[-2]
            weight = params[f"{module}/kernel"]
            if isinstance(weight, Mapping):
                weight = quantised.dequantise(weight, rows, leaf.dtype)
            norms = column_norms(weight.reshape(*leaf.shape[:-1], rows, leaf.shape[-1]))
            adapters[path] = norms.astype(leaf.dtype)
    return {**variables, COLLECTION: unflatten_dict(adapters, sep="/")}


def targets(boxed: Mapping[str, Any]) -> list[Target]:
    """Every weight of a boxed tree `params` that can have an adapter; the head of a task has none."""
    flat: dict[str, Any] = flatten_dict(dict(boxed), sep="/")
    found: list[Target] = []
    blocks = {match[0] for path in flat if (match := re.match(r"(?:.*/)?layers/block_\d+", path))}
    for path, box in flat.items():
        module, _, name = path.rpartition("/")
        axes = tuple(nn.get_partition_spec(box) or ())
        shape = tuple(meta.unbox(box).shape)
        layers, first, step = None, 0, 1
        if axes[:1] == ("layers",):
            layers, axes, shape = shape[0], axes[1:], shape[1:]
            step = sum(key.startswith(module.partition("/block_")[0] + "/block_") for key in blocks) or 1
        match = _LAYER.fullmatch(module)
        if match and (number := re.search(r"\d+", match["layer"])):
            first = int(number[0])
        new_head = module.partition("/")[0].endswith("_head")
        if axes[:1] != ("experts",) and not new_head and (name == "kernel" or axes == ("vocab", "embed")):
            side = (match["side"] or "") + match["rest"] if match else module
            found.append(Target(side, module, axes, shape, layers, first, step))
    return found


def chosen(config: LoRAConfig, found: Sequence[Target]) -> list[Target]:
    """Those of the weights that the section names.

    Raises:
        LoRAError: a pattern that names none of them, with the names there are; one that cannot have such an
            adapter.
    """
    taken: dict[str, Target] = {}
    for pattern in config.targets:
        these = [t for t in found if fnmatch.fnmatchcase(t.name, pattern)]
        if not these:
            names = ", ".join(sorted({t.name for t in found}))
            raise LoRAError(f"lora.targets: {pattern!r} names no weight of this model; there are: {names}")
        taken |= {t.module: t for t in these}
    check_embedding(taken, any(t.name == "head" for t in found))
    if config.dora and (table := next((t.name for t in taken.values() if t.is_table), None)):
        raise LoRAError(f"lora.targets: {table} is an embedding, which DoRA has no norm for")
    return list(taken.values())


def check_embedding(modules: Collection[str], has_head: bool) -> None:
    """Refuse an adapter of an embedding that is the head too.

    Raises:
        LoRAError: an adapter would change one of the two, and merged both.
    """
    if "embed" in modules and not has_head:
        raise LoRAError(
            "an adapter of 'embed' changes what is looked up, and this model has no head apart from it "
            "(tied): leave it out, or take a model with a head of its own"
        )


def merge_adapters(variables: Mapping[str, Any]) -> Tree:
    """The tree `params` with the adapters in it: `W + s·A·B`, in the dtype of the weights.

    Raises:
        LoRAError: several adapters, of a tied embedding, or weights in few bits.
    """
    return _moved(variables, 1.0)


def unmerge_adapters(variables: Mapping[str, Any]) -> Tree:
    """The inverse of `merge_adapters`, up to rounding: the tree `params` without what the adapters added.

    Raises:
        LoRAError: DoRA, whose weights do not say what they were before; or as `merge_adapters`.
    """
    if any(path[-1] == "magnitude" for path in flatten_dict(dict(variables[COLLECTION]))):
        raise LoRAError("merged DoRA weights do not say what they were: keep the base and load it again")
    return _moved(variables, -1.0)


def merge_matrix(weight: Any, a: Any, b: Any, scale: Any, magnitude: Any = None) -> Any:
    """One weight with its adapter in it, in its shape and dtype; computed in float32.

    Args:
        weight: a kernel or a table, of I·O numbers, or a stack of them; JAX or NumPy, as the rest.
        a, b, scale, magnitude: `[…, I, r]`, `[…, r, O]`, `[…]`, `[…, O]`.
    """
    merged = adapted_matrix(weight.reshape(*a.shape[:-1], b.shape[-1]), a, b, scale)
    if magnitude is not None:
        merged = merged * (magnitude / column_norms(merged))[..., None, :]
    return merged.reshape(weight.shape).astype(weight.dtype)


def stack_adapters(adapters: Sequence[Mapping[str, Any]]) -> Tree:
    """Several adapters of one model as one collection with an axis of adapters; ranks are padded with zeros.

    `nn.adapters.select` gives each row of a batch its own. One that leaves a weight alone is zero there.
    Their dropout is left out.

    Args:
        adapters: collections `lora` without boxes, in the same layout of the layers.

    Raises:
        LoRAError: one of them is DoRA.
    """
    flat: list[dict[str, Any]] = [flatten_dict(dict(each), sep="/") for each in adapters]
    modules = {path.rpartition("/")[0] for each in flat for path in each}
    if any(path.endswith("/magnitude") for each in flat for path in each):
        raise LoRAError("DoRA changes the weights themselves: its adapters cannot be mixed in one batch")
    leaves: dict[str, Any] = {}
    for module in sorted(modules):
        having = [each for each in flat if f"{module}/a" in each]
        rank = max(each[f"{module}/a"].shape[-1] for each in having)
        for name, axis in (("a", -1), ("b", -2), ("scale", None)):
            like = having[0][f"{module}/{name}"]
            parts = [_padded(each.get(f"{module}/{name}", jnp.zeros_like(like)), axis, rank) for each in flat]
            leaves[f"{module}/{name}"] = jnp.stack(parts, 1 if "layers" in module.split("/") else 0)
    return unflatten_dict(leaves, sep="/")


def _padded(leaf: Any, axis: int | None, rank: int) -> jax.Array:
    """The same with zeros up to the rank, along the axis that has it."""
    leaf = jnp.asarray(leaf)
    if axis is None:
        return leaf
    more = [(0, 0)] * leaf.ndim
    more[axis] = (0, rank - leaf.shape[axis])
    return jnp.pad(leaf, more)


def _moved(variables: Mapping[str, Any], sign: float) -> Tree:
    params = _weights(variables["params"])
    adapters: dict[str, Any] = flatten_dict(dict(variables[COLLECTION]), sep="/")
    if kept := next((path for path, leaf in params.items() if isinstance(leaf, Mapping)), None):
        raise LoRAError(
            f"{kept} is kept in few bits, which have no room for adapters: merge where it is loaded"
        )
    modules = sorted({path.rpartition("/")[0] for path in adapters})
    check_embedding(modules, "head/kernel" in params)
    for module in modules:
        a, b, scale = (jnp.asarray(adapters[f"{module}/{name}"]) for name in ("a", "b", "scale"))
        if scale.ndim != ("layers" in module.split("/")):
            raise LoRAError("several adapters do not go into one set of weights: choose one of them")
        name = f"{module}/kernel" if f"{module}/kernel" in params else f"{module}/embedding"
        params[name] = merge_matrix(
            jnp.asarray(params[name]), a, b, sign * scale, adapters.get(f"{module}/magnitude")
        )
    return unflatten_dict(params, sep="/")


def _draws(target: Target, key: jax.Array) -> Callable[[Any, tuple[int, int]], jax.Array]:
    """Random matrices: one for each layer of a stack, which depends on the layer alone."""

    def draw(function: Any, shape: tuple[int, int]) -> jax.Array:
        if target.layers is None:
            return function(jax.random.fold_in(key, target.first), shape)
        numbers = target.first + target.step * jnp.arange(target.layers)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return jax.vmap(functools.partial(function, shape=shape))(keys)

    return draw


def with_adapters(adapters: LoRAConfig, variables: Mapping[str, Any], key: jax.Array) -> Tree:
    """Boxed variables of a model with fresh adapters beside them; weights that `base` keeps in few bits are
    zeros, to be read (`in_few_bits`)."""
    begun = begin_adapters(adapters, variables["params"], key)
    params: dict[str, Any] = flatten_dict(dict(variables["params"]), sep="/")
    for path, target in few_bits(adapters, variables["params"]).items():
        kind: Any = adapters.base
        names = quantised.axes(target.axes[0], target.axes[target.cut], kind)
        del params[path]
        for name, part in quantised.shapes(*target.matrix, kind).items():
            zeros = jnp.zeros((*target.lead, *part.shape), part.dtype)
            params[f"{path}/{name}"] = nn.LogicallyPartitioned(zeros, target.named(*names[name]))
    return {**variables, "params": unflatten_dict(params, sep="/"), COLLECTION: begun}


def few_bits(config: LoRAConfig, boxed: Mapping[str, Any]) -> dict[str, Target]:
    """The kernels that `base` keeps in few bits, by path: all that multiply in the blocks.

    Raises:
        LoRAError: the model has experts.
    """
    if config.base == "none":
        return {}
    if any("experts" in nn.get_partition_spec(box) for box in flatten_dict(dict(boxed)).values()):
        raise LoRAError(
            f"lora.base: {config.base} keeps no experts, which are most of a mixture: leave it out"
        )
    return {f"{t.module}/kernel": t for t in targets(boxed) if _LAYER.fullmatch(t.module)}


def in_few_bits(target: Target, kernel: np.ndarray, kind: quantised.Kind) -> dict[str, np.ndarray]:
    """A kernel, or a stack of them, as `base` keeps it."""
    return quantised.quantise(kernel.reshape(*target.lead, *target.matrix), kind)


def rounded(path: str, kernel: np.ndarray, axes: Sequence[str | None], kind: quantised.Kind) -> np.ndarray:
    """A kernel of the unrolled model as adapters saw it: through `kind` and back, if `base` kept it so."""
    if not path.endswith("/kernel") or _LAYER.fullmatch(path) is None:
        return kernel
    rows = math.prod(kernel.shape[: input_axes(axes)])
    parts = quantised.quantise(kernel.reshape(rows, -1), kind)
    return np.asarray(quantised.dequantise(parts, rows, jnp.float32)).reshape(kernel.shape)


def _weights(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by path; a kernel in few bits is its parts."""

    def is_leaf(path: Any, value: Any) -> bool:
        return path[-1:] == ("kernel",) and isinstance(value, Mapping)

    return flatten_dict(dict(params), sep="/", is_leaf=is_leaf)
