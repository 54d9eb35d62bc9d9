"""Which layout of a model is the best one for a topology: several are compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from hllm_jax.parallel.config import MeshConfig
from hllm_jax.parallel.planning.topology import Topology, parse_topology
from hllm_jax.planning.compiling import Plan, PlanError, plan

REMAT = ("none", "selective", "full")


@dataclasses.dataclass(frozen=True)
class Search:
    """Layouts that were compiled.

    Attributes:
        best: the fastest by its roofline that fits, else the smallest.
        overrides: what makes the configuration that of `best`.
        tried: a line for each.
    """

    best: Plan
    overrides: list[str]
    tried: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The best plan, with `overrides` and `tried`."""
        return {**self.best.as_dict(), "overrides": self.overrides, "tried": self.tried}


def search(
    config: Any,
    topology: str | Topology,
    *,
    slices: int = 1,
    tokens: float | None = None,
    name: str = "",
    most: int = 12,
) -> Search:
    """Compile several layouts of a configuration, and choose.

    Candidates are `zero3` (across slices `hsdp`) with 1, 2, 4 and 8 ways of tensor parallelism, least first,
    and for each the remat policies, least recomputation first. More tensor parallelism only costs time once
    something fits, so the search ends with the first that does.

    Args:
        config, topology, slices, tokens, name: see `plan`.
        most: layouts that are compiled.

    Raises:
        PlanError: no layout divides.
        TopologyError: see `plan`.
    """
    chips = topology if isinstance(topology, Topology) else parse_topology(topology, slices)
    plans: list[tuple[Plan, list[str]]] = []
    tried: list[str] = []
    for changed, overrides in _candidates(config, chips):
        if len(plans) == most or (plans and plans[-1][0].fits):
            break
        said = " ".join(overrides)
        try:
            made = plan(changed, chips, tokens=tokens, name=name)
        except _refusals() as error:
            tried.append(f"{said}: {str(error).splitlines()[-1].strip()}")
            continue
        plans.append((made, overrides))
        tried.append(f"{said}: {_summary(made)}")
    if not plans:
        raise PlanError("no layout of this model divides over these devices:\n" + "\n".join(tried))
    best, overrides = min(plans, key=lambda found: _order(found[0]))
    return Search(best, overrides, tried)


def _candidates(config: Any, chips: Topology) -> Iterator[tuple[Any, list[str]]]:
    strategy = "hsdp" if chips.slices > 1 else "zero3"
    kept = {
        axis: size for axis, size in config.mesh.sizes().items() if axis in ("stage", "context", "expert")
    }
    each = chips.size // chips.slices
    for tensor in (1, 2, 4, 8):
        taken = tensor * math.prod(kept.values())
        if each % taken:
            continue
        inner = each // taken
        for remat in REMAT:
            mesh = MeshConfig(data=chips.slices, fsdp=inner, tensor=tensor, **kept)
            model = dataclasses.replace(config.model, remat=remat)
            changed = dataclasses.replace(config, strategy=strategy, mesh=mesh, model=model)
            sizes = ", ".join(f"{axis}: {size}" for axis, size in mesh.sizes().items())
            said = f"mesh={{{sizes}}}"
            yield changed, [f"strategy={strategy}", said, f"model.remat={remat}"]


def _refusals() -> tuple[type[Exception], ...]:
    """Layouts that do not divide."""
    from hllm_jax.parallel.layout import LayoutError
    from hllm_jax.parallel.mesh import MeshError

    return LayoutError, MeshError


def _order(made: Plan) -> tuple[bool, float]:
    if made.fits and made.roofline is not None:
        return False, made.roofline.step
    return True, made.per_device.peak or math.inf


def _summary(made: Plan) -> str:
    words = ["fits" if made.fits else "does not fit"]
    if made.per_device.peak is not None:
        words.append(f"peak {made.per_device.peak / 1e9:.1f} GB")
    if made.roofline is not None:
        words.append(f"step {1e3 * made.roofline.step:.0f} ms")
    return ", ".join(words)
