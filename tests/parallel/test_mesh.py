"""Meshes and rules as data."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec as P

from hllm_jax.config import Invalid
from hllm_jax.parallel import MeshConfig, MeshError, make_mesh, make_rules
from hllm_jax.parallel.mesh import mesh_shape
from hllm_jax.parallel.rules import spec


def test_all_devices_go_on_the_axis_of_the_strategy() -> None:
    for strategy, axis in (("ddp", "data"), ("zero1", "fsdp"), ("zero3", "fsdp"), ("tensor", "tensor")):
        shape = mesh_shape(MeshConfig(), strategy, 8)
        assert {name for name, size in shape.items() if size > 1} == {axis}


def test_minus_one_fills() -> None:
    assert mesh_shape(MeshConfig(data=-1, tensor=2), "ddp", 8)["data"] == 4


def test_wrong_sizes_say_the_numbers() -> None:
    with pytest.raises(MeshError, match=r"fsdp=3, tensor=2.* needs 6 devices, there are 8.*nearest.* is 4"):
        mesh_shape(MeshConfig(fsdp=3, tensor=2), "ddp", 8)
    with pytest.raises(MeshError, match="multiple of 3"):
        mesh_shape(MeshConfig(fsdp=3, data=-1), "ddp", 8)
    with pytest.raises(Invalid, match="only one axis may be -1"):
        MeshConfig(data=-1, fsdp=-1)
    with pytest.raises(Invalid, match="0: a size is 1 or more"):
        MeshConfig(tensor=0)


def test_axes_are_auto() -> None:
    mesh = make_mesh(None, "zero3")
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert mesh.size == 8


def test_zero_stages_are_tables() -> None:
    names = ("embed", "mlp")
    tables = {
        stage: tuple(spec(names, table) for table in (r.parameters, r.gradients, r.optimizer))
        for stage in ("ddp", "zero1", "zero2", "zero3")
        for r in [make_rules(stage)]
    }
    whole, split = P(None, ("tensor",)), P(("data", "fsdp"), ("tensor",))
    assert tables == {
        "ddp": (whole, whole, whole),
        "zero1": (whole, whole, split),
        "zero2": (whole, split, split),
        "zero3": (split, split, split),
    }
    assert spec(names, make_rules("hsdp").parameters) == P(("fsdp",), ("tensor",))


def test_a_mesh_axis_is_used_once() -> None:
    assert spec(("heads", "mlp"), make_rules("tensor").parameters) == P(("tensor",), None)
