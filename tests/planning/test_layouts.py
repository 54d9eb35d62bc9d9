"""The search for a layout, with a compiler of which only the answers matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hllm_jax.parallel import LayoutError
from hllm_jax.parallel.planning.roofline import Roofline
from hllm_jax.parallel.planning.topology import Topology
from hllm_jax.planning import PlanError, layouts
from hllm_jax.planning.compiling import PerDevice, Plan
from hllm_jax.recipes import load_run_config

CONFIG = load_run_config("configs/pretrain/tiny.yaml")[1]


def made(config: Any, topology: Topology, peak: int, step: float) -> Plan:
    times = Roofline(step, 0.0, 0.0, {}, step, step, "compute", 0.5)
    return Plan(
        config="x",
        topology=topology.name,
        devices=topology.size,
        mesh=config.mesh.sizes(),
        strategy=config.strategy,
        parameters=1,
        per_device=PerDevice(1, 1, peak, 100),
        states={},
        collectives=[],
        flops=1.0,
        model_flops=1.0,
        recomputed=0.0,
        fits=peak <= 100,
        roofline=times,
        tokens=1,
        measured_at=None,
        budget={},
        refusal=None,
        advice=[],
        compile_seconds=0.0,
    )


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """(tensor, remat) of every layout that was compiled. Remat and tensor parallelism make it smaller."""
    tried: list[tuple[int, str]] = []

    def plan(config: Any, topology: Topology, **_: Any) -> Plan:
        tensor, remat = config.mesh.tensor, config.model.remat
        tried.append((tensor, remat))
        peak = {"none": 400, "selective": 250, "full": 150}[remat] // tensor
        return made(config, topology, peak, step={"none": 1.0, "selective": 1.1, "full": 1.3}[remat])

    monkeypatch.setattr(layouts, "plan", plan)
    return tried


def test_the_search_ends_with_the_first_that_fits(compiled: list[tuple[int, str]]) -> None:
    found = layouts.search(CONFIG, "v5e:2x4")
    assert compiled == [
        (1, "none"),
        (1, "selective"),
        (1, "full"),
        (2, "none"),
        (2, "selective"),
        (2, "full"),
    ]
    assert found.best.fits
    assert found.overrides == ["strategy=zero3", "mesh={data: 1, fsdp: 4, tensor: 2}", "model.remat=full"]
    assert len(found.tried) == 6
    assert "does not fit" in found.tried[0]
    assert found.as_dict()["overrides"] == found.overrides


def test_where_nothing_fits_the_smallest_is_shown(compiled: list[tuple[int, str]]) -> None:
    found = layouts.search(CONFIG, "v5e:2x4", most=2)
    assert not found.best.fits
    assert found.best.per_device.peak == 250
    assert len(compiled) == 2


def test_slices_are_the_outermost_axis(compiled: list[tuple[int, str]]) -> None:
    found = layouts.search(CONFIG, "v5e:2x4", slices=2, most=1)
    assert found.overrides[:2] == ["strategy=hsdp", "mesh={data: 2, fsdp: 8, tensor: 1}"]
    assert len(compiled) == 1


def test_the_stages_of_a_configuration_are_kept(compiled: list[tuple[int, str]]) -> None:
    config = load_run_config("configs/pretrain/tiny.yaml", ["mesh.stage=2", "model.scan_layers=true"])[1]
    found = layouts.search(config, "v5e:2x4", most=1)
    assert found.overrides[1] == "mesh={stage: 2, data: 1, fsdp: 4, tensor: 1}"
    assert len(compiled) == 1


def test_the_overrides_make_the_configuration_of_the_best(compiled: list[tuple[int, str]]) -> None:
    found = layouts.search(CONFIG, "v5e:2x4")
    again = load_run_config("configs/pretrain/tiny.yaml", found.overrides)[1]
    mesh = dataclasses.replace(CONFIG.mesh, data=1, fsdp=4, tensor=2)
    assert (again.mesh, again.strategy, again.model.remat) == (mesh, "zero3", "full")


def test_where_nothing_divides_every_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(config: Any, topology: Topology, **_: Any) -> Plan:
        raise LayoutError(f"heads = 3 does not divide over {config.mesh.tensor}")

    monkeypatch.setattr(layouts, "plan", plan)
    with pytest.raises(PlanError, match="no layout of this model divides") as raised:
        layouts.search(CONFIG, "v5e:2x4")
    assert "over 8" in str(raised.value)
