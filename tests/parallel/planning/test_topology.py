"""Names of topologies, and what is said where the compiler for one is missing."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from hllm_jax.parallel import MeshConfig, MeshError, make_mesh
from hllm_jax.parallel.planning.topology import CHIPS, Topology, TopologyError, devices_of, parse_topology


@pytest.mark.parametrize(
    ("name", "slices", "kind", "shape", "size"),
    [
        ("v5p:4x4x4", 1, "v5p", (4, 4, 4), 64),
        ("v5e:2x4", 1, "v5e", (2, 4), 8),
        ("v6e:4x4", 2, "v6e", (4, 4), 32),
        ("v4:2x2x2", 1, "v4", (2, 2, 2), 8),
        ("V5P:8x16x16", 1, "v5p", (8, 16, 16), 2048),
        ("h100:8", 1, "h100", (1, 8), 8),
        ("h100:16x8", 1, "h100", (16, 8), 128),
    ],
)
def test_names(name: str, slices: int, kind: str, shape: tuple[int, ...], size: int) -> None:
    topology = parse_topology(name, slices)
    assert (topology.kind, topology.shape, topology.size) == (kind, shape, size)


@pytest.mark.parametrize("name", ["v9:2x2", "v5p", "v5p:", "tpu", "v5p:axb", ""])
def test_an_unknown_name_lists_those_that_are(name: str) -> None:
    with pytest.raises(TopologyError) as raised:
        parse_topology(name)
    assert all(kind in str(raised.value) for kind in CHIPS)


@pytest.mark.parametrize("name", ["v5p:4x4", "v5e:2x2x2", "v5e:32x32", "v5p:0x4x4", "h100:2x16"])
def test_a_shape_that_a_chip_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(TopologyError, match=f"'{name}' is no topology of {name.split(':')[0]}"):
        parse_topology(name)


def test_slices_are_one_or_more() -> None:
    with pytest.raises(TopologyError, match="--slices 0: at least 1"):
        parse_topology("v5e:2x4", 0)


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("v5e:2x4", "libtpu", "make setup EXTRAS=plan"),
        ("h100:8", "jax_cuda12_plugin", "make setup EXTRAS=cuda12"),
    ],
)
def test_a_missing_compiler_is_named_with_its_remedy(
    name: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(wanted: str, *rest: Any) -> Any:
        return None if wanted == package else find(wanted, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(TopologyError, match=remedy):
        devices_of(parse_topology(name))


def test_published_numbers_are_plausible() -> None:
    """Memory in GiB as the makers say; 100 to 600 operations for each byte that can be read."""
    gib = {kind: chip.memory / 1024**3 for kind, chip in CHIPS.items()}
    assert gib == {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "h100": 80}
    assert all(100 < chip.flops / chip.bandwidth < 600 for chip in CHIPS.values())


def test_several_slices_need_an_outer_axis_over_them() -> None:
    import jax

    devices = jax.devices()
    assert make_mesh(MeshConfig(data=2, fsdp=4), "hsdp", devices, slices=2).shape["data"] == 2
    with pytest.raises(MeshError, match="2 slices are connected by a slow network"):
        make_mesh(MeshConfig(tensor=8), "tensor", devices, slices=2)


def test_a_topology_knows_its_chip() -> None:
    assert Topology("v5e:2x4", "v5e", (2, 4)).chip is CHIPS["v5e"]
