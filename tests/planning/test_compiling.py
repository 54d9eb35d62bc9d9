"""Plans of small models for devices that are here (simulated CPUs), where every number can be checked."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from hllm_jax import parallel
from hllm_jax.parallel import LayoutError, MeshError
from hllm_jax.parallel.planning.refusal import Refusal
from hllm_jax.parallel.planning.topology import TopologyError, parse_topology
from hllm_jax.planning import compiling, depth
from hllm_jax.planning.compiling import PlanError
from hllm_jax.recipes import copy, load_run_config

TINY = (
    "model.decoder={layers: 2, embed: 64, heads: 8, kv_heads: 8, mlp: 96, max_length: 64}",
    "tokenizer.vocab_size=512",
    "model.scan_layers=true",
    "model.dtype=float32",
    "train.batch_size=16",
    "train.sequence_length=32",
)


def config(*overrides: str) -> Any:
    return load_run_config("configs/pretrain/tiny.yaml", (*TINY, *overrides))[1]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile for the devices of this machine."""
    for module in (compiling, depth):
        monkeypatch.setattr(module, "devices_of", lambda topology: jax.devices()[: topology.size])


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that has no memory."""

    def compile(self: jax.stages.Lowered, *args: Any, **options: Any) -> Any:
        raise RuntimeError("RESOURCE_EXHAUSTED: Used 27.50G of 15.75G hbm. Exceeded hbm capacity by 11.75G.")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)


@pytest.mark.usefixtures("here")
def test_data_parallel_training_sends_every_gradient_twice() -> None:
    """Ψ gradients through one all-reduce: 2Ψ on a ring (ZeRO, section 7.1). States are 4, 4 and 8 bytes."""
    made = parallel.plan(config("strategy=ddp"), "v5e:2x4", tokens=1e9)
    parameters = made.parameters
    assert (made.devices, made.mesh, made.strategy) == (8, {"data": 8}, "ddp")
    assert (made.states["params"], made.states["grads"]) == (4 * parameters, 4 * parameters)
    assert 0 <= made.states["optimizer"] - 8 * parameters < 16, "two moments and a count"
    (reduction,) = made.collectives
    assert (reduction.op, reduction.axis) == ("all-reduce", "data")
    assert 0 <= reduction.elements - parameters < 16, "the gradient, and some scalars"
    assert reduction.ring_elements == 2 * reduction.elements
    assert made.flops is not None
    assert 0.99 < made.flops / made.model_flops < 1.2, "masked halves of attention are computed on a CPU"
    assert made.recomputed == 0
    assert made.fits
    assert made.refusal is None
    assert made.advice == []
    assert made.tokens == 16 * 32
    assert made.budget["tokens"] == 1e9
    assert math.isclose(made.budget["flops"], 6 * parameters * 1e9)
    assert math.isclose(made.budget["steps"], 1e9 / 512)
    keys = {"devices", "per_device", "states", "collectives", "flops", "fits"}
    assert keys <= set(made.as_dict())
    assert set(made.as_dict()["per_device"]) == {"arguments", "temporaries", "peak", "capacity", "host"}
    assert {"op", "axis", "bytes", "count"} <= set(made.as_dict()["collectives"][0])


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_pipeline_is_planned_with_its_bubble() -> None:
    stages = ("mesh.stage=2", "mesh.data=4", "pipeline.microbatches=4", "model.scan_layers=true")
    made = parallel.plan(config("strategy=ddp", *stages), "v5e:2x4")
    assert made.pipeline == {
        "stages": 2, "schedule": "GPipe", "microbatches": 4, "repeats": 1, "bubble": 1 / 5
    }  # fmt: skip
    (sent,) = (each for each in made.collectives if each.op == "collective-permute")
    assert (sent.axis, sent.count) == ("stage", 2 * 5), "a stream a tick, forwards and backwards"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("topology", "words", "said"),
    [
        (
            "v5e:2x4",
            "INTERNAL: RET_CHECK failure\nat",
            "compiled for v5e:2x4, not for want of memory: INTERNAL: ",
        ),
        (
            "h100:8",
            "cuDNN is not detected.",
            "cuDNN comes with `make setup EXTRAS=cuda12`, model.attention=plain plans without it",
        ),
    ],
)
def test_a_compiler_that_stops_is_one_sentence(
    topology: str, words: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: jax.stages.Lowered, *args: Any, **options: Any) -> Any:
        raise RuntimeError(words)

    monkeypatch.setattr(jax.stages.Lowered, "compile", stop)
    with pytest.raises(PlanError, match=said) as raised:
        parallel.plan(config(), topology)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("here", "refused")
@pytest.mark.parametrize(
    ("strategy", "params", "grads", "optimizer"),
    [("ddp", 1, 1, 1), ("zero1", 1, 1, 8), ("zero2", 1, 8, 8), ("zero3", 8, 8, 8)],
)
def test_states_of_the_zero_stages(strategy: str, params: int, grads: int, optimizer: int) -> None:
    """What is sharded is an eighth; vectors stay whole: 5 of 64 floats, 1 % of these parameters."""
    made = parallel.plan(config(f"strategy={strategy}"), "v5e:2x4")
    whole = 4 * made.parameters
    vectors = 4 * 5 * 64
    for name, ways, copies in (("params", params, 1), ("grads", grads, 1), ("optimizer", optimizer, 2)):
        sharded = copies * (whole - vectors) / ways + copies * vectors
        assert abs(made.states[name] - sharded) < 16, name


@pytest.mark.usefixtures("here", "refused")
def test_what_the_compiler_refuses_does_not_fit() -> None:
    made = parallel.plan(config("strategy=ddp"), "v5e:2x4")
    assert not made.fits
    assert made.per_device.peak == int(27.5 * 1024**3)
    assert made.refusal is not None
    assert "15.75G" in made.refusal
    assert made.per_device.arguments > 16 * made.parameters - 4 * made.parameters
    assert any("remat=full" in way for way in made.advice)
    assert any("more devices than 8" in way for way in made.advice)


@pytest.mark.usefixtures("here")
def test_what_does_not_fit_is_continued_from_a_few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse the whole and accept 2 and 3 layers: the rest of the report is that of the whole."""
    wide = ("model.decoder={layers: 6, embed: 64, heads: 8, kv_heads: 8, mlp: 96, max_length: 64}",)
    whole = parallel.plan(config("strategy=zero3", *wide), "v5e:2x4")
    compile, calls = compiling.Planning.compile, []

    def refuse_the_first(self: compiling.Planning) -> Any:
        calls.append(self.spec.layers)
        refusal = Refusal(10**12, 10**9, "RESOURCE_EXHAUSTED: too much")
        return (None, refusal, 0.0) if self.spec.layers == 6 else compile(self)

    monkeypatch.setattr(compiling.Planning, "compile", refuse_the_first)
    made = parallel.plan(config("strategy=zero3", *wide), "v5e:2x4")
    assert calls == [6, 2, 3]
    assert made.measured_at == (2, 3)
    assert not made.fits
    assert made.per_device.peak == 10**12
    assert made.flops == pytest.approx(whole.flops)
    assert made.collectives == whole.collectives
    assert made.states == whole.states


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("v5e:2x4", (2, 2, 2)),
        ("v5e:16x16", (4, 8, 8)),
        ("v6e:2x2", (2, 2, 1)),
        ("v5e:1x1", None),
        ("h100:8", None),
    ],
)
def test_as_many_chips_with_more_memory(name: str, shape: tuple[int, ...] | None) -> None:
    chips = depth.roomy(parse_topology(name))
    if shape is None:
        assert chips is None
    else:
        assert chips is not None
        assert (chips.kind, tuple(sorted(chips.shape))) == ("v5p", tuple(sorted(shape)))
        assert chips.shape[0] % 2 == chips.shape[1] % 2 == 0, "whole hosts"


def test_bad_input_is_refused() -> None:
    with pytest.raises(TopologyError, match=r"unknown topology 'v9:8'.*v5p:4x4x4"):
        parallel.plan(config(), "v9:8")


@pytest.mark.usefixtures("here")
def test_a_layout_that_does_not_divide_is_refused() -> None:
    with pytest.raises(MeshError, match="needs 3 devices, there are 8"):
        parallel.plan(config("mesh.data=3"), "v5e:2x4")
    with pytest.raises(LayoutError, match="batch_size=12 does not divide"):
        parallel.plan(config("train.batch_size=12"), "v5e:2x4")


def test_a_recipe_without_a_step_is_refused_with_what_to_add(tmp_path: Path) -> None:
    recipe = copy("pretrain", tmp_path)[0]
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("make_step", "another"), encoding="utf-8")
    _, own = load_run_config(tmp_path / "tiny.yaml")
    with pytest.raises(PlanError, match=r"no function make_step\(config, model, mesh, steps\)"):
        parallel.plan(dataclasses.replace(own, recipe=str(recipe)), "v5e:2x4")


@pytest.mark.usefixtures("here", "refused")
@pytest.mark.parametrize(
    "name", ["pretrain/bert-tiny", "pretrain/t5-tiny", "sft/tiny", "finetune/tiny", "pretrain/tiny"]
)
def test_every_recipe_and_objective_is_traced(name: str) -> None:
    """Up to the compiler, which is the part that takes long."""
    _, whole = load_run_config(f"configs/{name}.yaml")
    made = parallel.plan(whole, parse_topology("v5e:1x1"))
    assert made.parameters > 100_000
    assert made.tokens >= whole.train.batch_size * whole.train.sequence_length
