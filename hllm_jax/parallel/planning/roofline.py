"""How long a step takes at least: by arithmetic, by memory, by the network (Williams et al. 2009)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hllm_jax.parallel.planning.hlo import Collective
from hllm_jax.parallel.planning.topology import Topology

ASSUMPTIONS = (
    "matrix products at the chip's bfloat16 peak",
    "every result that leaves the core is written to and read from memory once",
    "a collective is a ring over both directions of every axis of the torus that it spans; across slices and "
    "hosts it runs at the rate of the network of the data centre",
    "the step takes as long as the slowest of the three (they overlap); their sum is the other extreme",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step.

    Attributes:
        compute, memory, network: if nothing else took time.
        network_by_axis: of the mesh.
        step: the largest of the three.
        without_overlap: their sum.
        binds: which is the largest.
        mfu: share of the peak that the model's own operations reach in `step`.
        assumptions: what was taken for granted.
    """

    compute: float
    memory: float
    network: float
    network_by_axis: dict[str, float]
    step: float
    without_overlap: float
    binds: str
    mfu: float
    assumptions: tuple[str, ...] = ASSUMPTIONS


def step_time(
    topology: Topology,
    mesh: Mapping[str, int],
    flops: float,
    traffic: float,
    collectives: Sequence[Collective],
    model_flops: float,
) -> Roofline:
    """The times of one device.

    Args:
        topology: of the chips.
        mesh: sizes of its axes, outermost first.
        flops, traffic: of a device, as the compiled program has them.
        collectives: of a device.
        model_flops: of a device, as the model needs them.
    """
    chip = topology.chip
    by_axis: dict[str, float] = {}
    for collective in collectives:
        rate = _rate(topology, mesh, collective)
        by_axis[collective.axis] = by_axis.get(collective.axis, 0.0) + collective.ring_bytes / rate
    times = {
        "compute": flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "network": sum(by_axis.values()),
    }
    binds = max(times, key=lambda name: times[name])
    step = times[binds]
    return Roofline(
        **times,
        network_by_axis=by_axis,
        step=step,
        without_overlap=sum(times.values()),
        binds=binds,
        mfu=model_flops / chip.flops / step if step else 0.0,
    )


def _rate(topology: Topology, mesh: Mapping[str, int], collective: Collective) -> float:
    """Bytes a second that a device passes on in a ring along these axes of the mesh."""
    chip, names = topology.chip, collective.axis.split("+")
    if collective.between_slices:
        return chip.outside
    size, inner = 1, 1
    for name, length in reversed(list(mesh.items())):
        if name in names:
            size *= length
        if size == 1:
            inner *= length  # axes inside of the innermost one that is used
    if chip.platform == "gpu":
        return chip.outside if size * inner > chip.host else chip.link
    # Of an axis that runs over several slices, the part inside of one.
    size = min(size, topology.size // topology.slices)
    spanned, reached = 0, 1
    for length in sorted(topology.shape, reverse=True):
        if reached < size:
            spanned, reached = spanned + 1, reached * length
    return 2 * chip.link * max(spanned, 1)
