"""`hllm plan`: what it prints, its exit status, and its JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from hllm_jax import planning
from hllm_jax.cli import main

CONFIG = "configs/pretrain/tiny.yaml"
KEYS = {"devices", "per_device", "states", "collectives", "flops", "fits"}

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: make setup EXTRAS=plan"
)


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets variables of its process; they do not outlive a test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_an_unknown_topology_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, "--topology", "v9:2x2"]) == 2
    said = capsys.readouterr().err
    assert "unknown topology 'v9:2x2'" in said
    assert "v5p:4x4x4" in said


def test_a_missing_compiler_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "libtpu" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert main(["plan", CONFIG, "--topology", "v5e:2x4"]) == 2
    assert "make setup EXTRAS=plan" in capsys.readouterr().err


def test_a_wrong_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, "--topology", "v5e:2x4", "train.batchsize=8"]) == 2
    assert "batch_size" in capsys.readouterr().err


def test_a_topology_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", CONFIG])
    assert "--topology" in capsys.readouterr().err


def test_overrides_may_stand_before_and_after_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def plan(config: Any, topology: str, **options: Any) -> Any:
        seen.update(strategy=config.strategy, seed=config.run.seed, topology=topology, **options)
        raise ValueError("enough")

    monkeypatch.setattr(planning, "plan", plan)
    command = ["plan", CONFIG, "strategy=zero3", "--topology", "v5e:2x4", "run.seed=7", "--tokens", "2e12"]
    assert main([*command, "--slices", "2"]) == 2
    assert seen == {
        "strategy": "zero3",
        "seed": 7,
        "topology": "v5e:2x4",
        "slices": 2,
        "tokens": 2e12,
        "name": CONFIG,
    }


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "hllm_jax", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


SMALL = ("model.decoder={layers: 4, embed: 512, heads: 4, kv_heads: 4, mlp: 1024, max_length: 512}",)
SMALL += ("model.scan_layers=true", "train.batch_size=8", "train.sequence_length=512")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_the_json_of_a_small_model_on_a_tpu(strategy: str) -> None:
    """Ψ parameters in float32 that are used in bfloat16: gradients are reduced in float32."""
    done = run(CONFIG, "--topology", "v5e:2x4", "--json", f"strategy={strategy}", *SMALL)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert set(made) >= KEYS
    assert made["fits"]
    assert made["devices"] == 8
    size = made["parameters"]
    sharded = 8 if strategy == "zero3" else 1
    assert made["states"]["params"] == pytest.approx(4 * size / sharded, rel=0.02)
    assert made["per_device"]["capacity"] == 16 * 1024**3
    assert made["per_device"]["peak"] >= made["states"]["params"]
    assert made["flops"] / made["model_flops"] < 1.1
    volume = sum(each["ring_elements"] for each in made["collectives"])
    # Stage 3: 2Ψ gathered and Ψ scattered; the embedding, a tied or first table, is not gathered twice.
    assert 1.95 * size < volume < 3.05 * size
    assert {each["axis"] for each in made["collectives"]} == {"fsdp" if strategy == "zero3" else "data"}


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_says_what_to_change() -> None:
    done = run("configs/pretrain/llama2-7b.yaml", "--topology", "v5e:2x4", "--json", "strategy=ddp")
    assert done.returncode == 3, done.stderr
    made = json.loads(done.stdout)
    assert set(made) >= KEYS
    assert not made["fits"]
    assert made["per_device"]["peak"] > made["per_device"]["capacity"]
    assert made["states"]["params"] == 4 * 6_738_415_616
    assert any("zero3" in way for way in made["advice"])
