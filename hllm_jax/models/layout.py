"""The two layouts of the layers' parameters: stacked for the scan, or one subtree per layer.

unrolled   layers_0/attention/query/kernel [D, H, h] … layers_11/…
stacked    layers/attention/query/kernel [12, D, H, h]
stacked, period of two   layers/block_0/… [6, …] (layers 0, 2, 4 …), layers/block_1/… (1, 3, 5 …)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict

from hllm_jax.models.config import DecoderConfig, Execution

Tree = dict[str, Any]


def is_stacked(params: Tree) -> bool:
    """Whether the layers of this parameter tree are stacked."""
    return "layers" in params


def stack_layers(params: Tree, period: int = 1) -> Tree:
    """Unrolled parameters to stacked ones.

    Args:
        params: the tree under `params`; leaves numpy or jax arrays, or `jax.ShapeDtypeStruct`.
        period: length of the attention pattern.

    Raises:
        ValueError: layers are missing, differ in shape, or are not a multiple of the period.
    """
    names = sorted(
        (k for k in params if k.startswith("layers_")), key=lambda k: int(k.removeprefix("layers_"))
    )
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
    if not is_stacked(params):
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


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the unrolled model by path (`layers_0/attention/query/kernel`).

    Nothing is computed and no backend is started.
    """
    from hllm_jax.models.decoder import Decoder

    # Scanned, because then one block is traced whatever the depth.
    model = Decoder(config, Execution(dtype="float32", scan_layers=True, attention="plain"))

    def init() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    params = unstack_layers(meta.unbox(jax.eval_shape(init))["params"])
    leaves: dict[tuple[str, ...], Any] = flatten_dict(params)
    return {"/".join(path): tuple(leaf.shape) for path, leaf in leaves.items()}


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
