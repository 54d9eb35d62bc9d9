"""The times of a step, worked by hand."""

from __future__ import annotations

import math

import pytest

from hllm_jax.parallel.planning.hlo import Collective
from hllm_jax.parallel.planning.roofline import step_time
from hllm_jax.parallel.planning.topology import parse_topology

MESH = {"stage": 1, "data": 1, "fsdp": 8, "expert": 1, "context": 1, "tensor": 1}


def moved(size: int, axis: str = "fsdp", between: bool = False) -> Collective:
    return Collective("all-gather", axis, 1, size, size, size, size, 0, between)


def test_the_slowest_of_three_binds() -> None:
    """v5e: 197 TFLOP/s, 810 GB/s, and a ring of 8 over both axes of 2 x 4 in both directions, 180 GB/s."""
    chips = parse_topology("v5e:2x4")
    times = step_time(chips, MESH, flops=197e12, traffic=405e9, collectives=[], model_flops=98.5e12)
    assert (times.compute, times.memory, times.network) == (1.0, 0.5, 0.0)
    assert (times.binds, times.step, times.without_overlap, times.mfu) == ("compute", 1.0, 1.5, 0.5)
    gathered = step_time(chips, MESH, 197e12, 405e9, [moved(360_000_000_000)], 98.5e12)
    assert math.isclose(gathered.network, 360 / (2 * 2 * 45))
    assert (gathered.binds, gathered.mfu) == ("network", 0.25)
    assert gathered.network_by_axis == {"fsdp": gathered.network}


@pytest.mark.parametrize(
    ("name", "slices", "mesh", "axis", "rate"),
    [
        ("v5p:2x2x2", 1, {"data": 1, "fsdp": 4, "tensor": 2}, "tensor", 2 * 9e10),
        ("v5p:2x2x2", 1, {"data": 1, "fsdp": 8, "tensor": 1}, "fsdp", 3 * 2 * 9e10),
        ("v5e:2x4", 2, {"data": 1, "fsdp": 16, "tensor": 1}, "fsdp", 2 * 2 * 4.5e10),
        ("h100:8", 1, {"data": 1, "fsdp": 8, "tensor": 1}, "fsdp", 4.5e11),
        ("h100:2x8", 1, {"data": 2, "fsdp": 8, "tensor": 1}, "data", 5e10),
        ("h100:2x8", 1, {"data": 2, "fsdp": 8, "tensor": 1}, "fsdp", 4.5e11),
    ],
)
def test_the_network_of_an_axis(name: str, slices: int, mesh: dict[str, int], axis: str, rate: float) -> None:
    times = step_time(parse_topology(name, slices), mesh, 0.0, 0.0, [moved(10**9, axis)], 0.0)
    assert math.isclose(times.network, 1e9 / rate)


def test_between_slices_runs_the_network_of_the_data_centre() -> None:
    mesh = {"data": 2, "fsdp": 8, "tensor": 1}
    times = step_time(parse_topology("v5e:2x4", 2), mesh, 0.0, 0.0, [moved(10**9, "data", True)], 0.0)
    assert math.isclose(times.network, 1e9 / 3.125e9)
