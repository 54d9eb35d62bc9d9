"""What a program costs that the compiler refuses: measured at two smaller depths, and continued in a line.

Layers are alike, so arithmetic, collectives and memory traffic grow linearly with their number. The few
layers are compiled for as many chips of the kind with the most memory: what a device does is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hllm_jax.parallel.planning.hlo import Collective, Program
from hllm_jax.parallel.planning.topology import CHIPS, Topology, devices_of

if TYPE_CHECKING:
    from hllm_jax.planning.compiling import Planning

#: Periods of the layers' pattern on each stage. (The loop over a single one would be taken apart, and its
#: remat with it.)
DEPTHS = (2, 3)
#: The kind of chip that has the most memory.
ROOMY = "v5p"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program does on one device.

    Attributes:
        flops: operations of matrix products.
        recomputed: those of them that the backward pass computes again.
        traffic: bytes to and from the memory of the chip.
        temporaries: bytes allocated beside the arguments.
        collectives: all of them.
    """

    flops: float
    recomputed: float
    traffic: float
    temporaries: int
    collectives: list[Collective]


def measure(compiled: Any, mesh: Mapping[str, int], slices: int) -> Cost:
    """The cost of a compiled program on a mesh of these sizes, which runs over so many slices."""
    program = Program(compiled.as_text())
    flops, recomputed = program.flops()
    temporaries = int(compiled.memory_analysis().temp_size_in_bytes)
    return Cost(flops, recomputed, program.traffic(), temporaries, program.collectives(mesh, slices))


def continued(planning: Planning) -> tuple[Cost | None, tuple[int, ...] | None]:
    """The cost of a step that does not compile, and the depths that it was measured at.

    None where nothing can be said: too few layers, another number of them on the side of the decoder, GPUs,
    no torus of so many chips, or a few layers that do not fit either.
    """
    spec, chips = planning.spec, roomy(planning.topology)
    layout = planning.layout
    # A pipeline is made of whole runs of layers.
    unit = len(getattr(spec, "attention_pattern", (None,)))
    unit *= layout.mesh.shape["stage"] * layout.pipeline.repeats
    depths = tuple(number * unit for number in DEPTHS)
    decoder = getattr(spec, "decoder_layers", None)
    if chips is None or depths[-1] >= spec.layers or decoder not in (None, spec.layers):
        return None, None
    devices = devices_of(chips)
    costs: list[Cost] = []
    for layers in depths:
        smaller = planning.with_layers(layers, chips, devices)
        compiled, refusal, _ = smaller.compile()
        if refusal is not None:
            return None, None
        costs.append(measure(compiled, dict(smaller.mesh.shape), chips.slices))
    return extrapolate(costs[0], costs[1], depths, spec.layers), depths


def roomy(topology: Topology) -> Topology | None:
    """As many chips and slices of the kind with the most memory; None where there is no such torus."""
    if topology.chip.platform != "tpu":
        return None
    size, most = topology.size // topology.slices, CHIPS[ROOMY].largest
    # Whole hosts, of 2 x 2 x 1 chips.
    shapes = [
        (a, b, size // (a * b))
        for a in range(2, most[0] + 1, 2)
        for b in range(2, most[1] + 1, 2)
        if size % (a * b) == 0 and size // (a * b) <= most[2]
    ]
    if not shapes:
        return None
    shape = min(shapes, key=sum)
    return Topology(f"{ROOMY}:{'x'.join(map(str, shape))}", ROOMY, shape, topology.slices)


def extrapolate(first: Cost, second: Cost, depths: tuple[int, ...], layers: int) -> Cost:
    """The line through the costs of two depths, continued to `layers`."""
    far = (layers - depths[0]) / (depths[1] - depths[0])

    def line(one: float, two: float) -> float:
        return one + far * (two - one)

    same = ("op", "axis", "between_slices")
    known = {tuple(getattr(each, name) for name in same): each for each in first.collectives}
    collectives: list[Collective] = []
    for each in second.collectives:
        before = known.get((each.op, each.axis, each.between_slices))
        before = before or Collective(each.op, each.axis, 0, 0, 0, 0, 0, 0)
        numbers: dict[str, Any] = {
            field.name: round(line(getattr(before, field.name), getattr(each, field.name)))
            for field in dataclasses.fields(Collective)
            if field.name not in same
        }
        collectives.append(dataclasses.replace(each, **numbers))
    return Cost(
        flops=line(first.flops, second.flops),
        recomputed=line(first.recomputed, second.recomputed),
        traffic=line(first.traffic, second.traffic),
        temporaries=round(line(first.temporaries, second.temporaries)),
        collectives=collectives,
    )
