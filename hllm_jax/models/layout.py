"""The two layouts of the layers' parameters: stacked for the scan, or one subtree per layer.

unrolled   layers_0/attention/query/kernel [D, H, h] … layers_11/…
stacked    layers/attention/query/kernel [12, D, H, h]
stacked, period of two   layers/block_0/… [6, …] (layers 0, 2, 4 …), layers/block_1/… (1, 3, 5 …)

An encoder-decoder has such layers on both sides, `encoder/layers_0/…`. Layers that share one block's weights
are `shared_layer/…` in either layout.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict

from hllm_jax.models.config import Execution
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.encoder import Encoder
from hllm_jax.models.encoder_decoder import EncoderDecoder
from hllm_jax.models.spec import Spec

Tree = dict[str, Any]

#: Parts of an encoder-decoder that have layers of their own.
SIDES = ("encoder", "decoder")

_LAYER = re.compile(r"((?:encoder|decoder)/)?layers_(\d+)/(.+)")


Model: TypeAlias = Decoder | Encoder | EncoderDecoder


def is_stacked(params: Tree) -> bool:
    """Whether the layers of this parameter tree are stacked; true where there are none to stack."""
    return "layers" in params or (not _numbered(params) and all(is_stacked(side) for side in _sides(params)))


def stack_layers(params: Tree, period: int = 1) -> Tree:
    """Unrolled parameters to stacked ones.

    Args:
        params: the tree under `params`; leaves numpy or jax arrays, or `jax.ShapeDtypeStruct`.
        period: length of the attention pattern.

    Raises:
        ValueError: layers are missing, differ in shape, or are not a multiple of the period.
    """
    params = {name: stack_layers(sub, period) if name in SIDES else sub for name, sub in params.items()}
    names = _numbered(params)
    if not names and ("shared_layer" in params or _sides(params)):
        return params
    if not names or names != [f"layers_{i}" for i in range(len(names))]:
        raise ValueError(f"expected layers_0, layers_1, … without a gap, found {names or sorted(params)}")
    if len(names) % period:
        raise ValueError(f"{len(names)} layers are no multiple of the period {period}")
    rest = {k: v for k, v in params.items() if k not in names}
    blocks = [
        jax.tree.map(_stack, *(params[name] for name in names[offset::period])) for offset in range(period)
    ]
    stacked = blocks[0] if period == 1 else {f"block_{i}": block for i, block in enumerate(blocks)}
    return {**rest, "layers": stacked}


def unstack_layers(params: Tree) -> Tree:
    """Stacked parameters to unrolled ones; the inverse of `stack_layers`."""
    params = {name: unstack_layers(sub) if name in SIDES else sub for name, sub in params.items()}
    if "layers" not in params:
        if "shared_layer" in params or _sides(params):
            return params
        raise ValueError(f"expected stacked layers under 'layers', found {sorted(params)}")
    stacked = params["layers"]
    period = sum(name.startswith("block_") for name in stacked)
    blocks = [stacked[f"block_{i}"] for i in range(period)] or [stacked]
    count = jax.tree.leaves(blocks[0])[0].shape[0]
    layers = {
        f"layers_{i * len(blocks) + offset}": jax.tree.map(functools.partial(_take, i), block)
        for i in range(count)
        for offset, block in enumerate(blocks)
    }
    return {**{k: v for k, v in params.items() if k != "layers"}, **layers}


def stacked_path(path: str, period: int = 1) -> tuple[str, int | None]:
    """Where a parameter of the unrolled model lies in the stacked one: its path there, and its index.

    `encoder/layers_3/mlp/up/kernel` -> `("encoder/layers/mlp/up/kernel", 3)`; index None: it is not stacked.
    """
    found = _LAYER.fullmatch(path)
    if found is None:
        return path, None
    side, number, rest = found[1] or "", int(found[2]), found[3]
    block = "" if period == 1 else f"block_{number % period}/"
    return f"{side}layers/{block}{rest}", number // period


def unrolled_paths(path: str, layers: int, period: int = 1) -> list[str]:
    """The inverse of `stacked_path`: where the entries of a stacked parameter lie in the unrolled model.

    Args:
        path: of a parameter, stacked or not.
        layers: length of its first axis, if it is stacked.
        period: of the attention pattern.
    """
    found = re.fullmatch(r"((?:encoder|decoder)/)?layers/(?:block_(\d+)/)?(.+)", path)
    if found is None:
        return [path]
    first = int(found[2] or 0)
    return [f"{found[1] or ''}layers_{first + i * period}/{found[3]}" for i in range(layers)]


def flat_unrolled(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every parameter of a tree, stacked or not, by its path in the unrolled model."""
    tree: Any = dict(params)
    tree = unstack_layers(tree) if is_stacked(tree) else tree
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}


def parameter_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the unrolled model by path (`layers_0/attention/query/kernel`).

    Nothing is computed and no backend is started.
    """
    return {path: tuple(meta.unbox(box).shape) for path, box in boxed_parameters(spec).items()}


def parameter_axes(spec: Spec) -> dict[str, tuple[str, ...]]:
    """Names of the axes of every parameter of the unrolled model by path."""
    return {path: tuple(nn.get_partition_spec(box)) for path, box in boxed_parameters(spec).items()}


def boxed_parameters(spec: Spec) -> dict[str, Any]:
    """Shapes of the unrolled parameters by path, boxed with the names of their axes."""
    return dict(_boxed(spec))


@functools.lru_cache(64)
def _boxed(spec: Spec) -> Mapping[str, Any]:
    """One block is traced, once for each spec."""
    model = spec.build(Execution(dtype="float32", scan_layers=True, attention="plain"))
    unrolled = _taken_apart(jax.eval_shape(lambda: _init(model, jax.random.key(0)))["params"])
    return {"/".join(path): box for path, box in flatten_dict(unrolled).items()}


def init_variables(model: nn.Module, key: jax.Array) -> Any:
    """Fresh variables of a model, boxed with the names of their axes; the same numbers in either layout.

    They are drawn stacked and then taken apart: one block's generators are compiled, not those of all.
    """
    if not isinstance(model, Model) or model.execution.scan_layers:
        return _init(model, key)
    execution = model.execution
    stacked = _init(model.clone(execution=dataclasses.replace(execution, scan_layers=True)), key)
    return {name: _taken_apart(tree) for name, tree in stacked.items()}


def _init(model: nn.Module, key: jax.Array) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, *([tokens, tokens] if isinstance(model, EncoderDecoder) else [tokens]))


def _taken_apart(boxed: Tree) -> Tree:
    """Boxed parameters, stacked to unrolled: without the axis `layers` among the names too."""

    def without(box: Any) -> Any:
        return box.replace(names=box.names[1:]) if box.names[:1] == ("layers",) else box

    return unstack_layers(jax.tree.map(without, boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)))


def _numbered(params: Tree) -> list[str]:
    names = (name for name in params if name.startswith("layers_"))
    return sorted(names, key=lambda name: int(name.removeprefix("layers_")))


def _sides(params: Tree) -> list[Tree]:
    return [params[name] for name in SIDES if name in params]


def _stack(*leaves: Any) -> Any:
    if len({(leaf.shape, leaf.dtype) for leaf in leaves}) != 1:
        raise ValueError(f"layers of different shapes or dtypes: {[(x.shape, x.dtype) for x in leaves]}")
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
    return np.stack(leaves) if isinstance(first, np.ndarray) else jnp.stack(leaves)


def _take(i: int, leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[i]
