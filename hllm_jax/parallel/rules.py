"""What each logical axis means on the mesh: this table is all that DDP, ZeRO and tensor parallelism are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from jax.sharding import PartitionSpec

from hllm_jax.parallel.config import Strategy

#: Logical axis -> mesh axes that split it; an axis that is missing is not split.
Table: TypeAlias = Mapping[str, tuple[str, ...]]

#: Axes of parameters that tensor parallelism splits (Shoeybi et al. 2019: columns, then rows).
#: The experts of a mixture lie on different devices (Lepikhin et al. 2020) whatever the strategy.
#: The layers of a pipeline lie on its stages (Huang et al. 2019).
TENSOR: Table = {
    "layers": ("stage",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
}

#: Mesh axes over which the rows of a batch are spread. Every stage of a pipeline is given all of them; before
#: and behind the layers the stages share them out.
BATCH = ("data", "fsdp", "expert")

#: Those of them whose collectives are written out (`gather.py`); the compiler places those of the others.
MANUAL = ("data", "fsdp")

ACTIVATIONS: Table = {
    "batch": (*BATCH, "stage"),
    "length": ("context",),
    "act_heads": ("tensor",),
    "act_kv_heads": ("tensor",),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
    "act_experts": ("expert",),
    "expert_batch": ("data", "fsdp"),
}

#: Axes of what is fed to a step.
INPUTS: Table = {"batch": BATCH, "length": ("context",)}


@dataclasses.dataclass(frozen=True)
class Rules:
    """One table for each kind of array that a train step holds."""

    parameters: Table
    gradients: Table
    optimizer: Table
    activations: Table


def make_rules(strategy: Strategy) -> Rules:
    """The rules of a strategy (Rajbhandari et al. 2020, section 5, for the ZeRO stages)."""
    over = ("fsdp",) if strategy == "hsdp" else ("data", "fsdp")
    sharded: Table = {**TENSOR, "embed": over}
    whole: Table = TENSOR
    stage = {"ddp": 0, "tensor": 0, "zero1": 1, "zero2": 2, "zero3": 3, "hsdp": 3}[strategy]
    return Rules(
        parameters=sharded if stage >= 3 else whole,
        gradients=sharded if stage >= 2 else whole,
        optimizer=sharded if stage >= 1 else whole,
        activations=ACTIVATIONS,
    )


def mesh_axes(names: Sequence[str | None], table: Table) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that split each axis of an array. A mesh axis is used once; the first name wins.

    Vectors of the width of the stream (norms, biases) are not split by it: they weigh nothing, and a
    collective for each of them costs time.
    """
    used: set[str] = set()
    parts: list[tuple[str, ...]] = []
    whole = {"embed"} if [name for name in names if name != "layers"] == ["embed"] else set()
    for name in names:
        over = () if name in whole else table.get(name or "", ())
        axes = tuple(axis for axis in over if axis not in used)
        used.update(axes)
        parts.append(axes)
    return tuple(parts)


def spec(names: Sequence[str | None], table: Table) -> PartitionSpec:
    """The partition spec of an array whose axes have these names."""
    return PartitionSpec(*(axes or None for axes in mesh_axes(names, table)))
