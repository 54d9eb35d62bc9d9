"""What the quickstart keeps between its stages and between its starts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hllm_jax.quickstart.chain import Chain, minutes
from hllm_jax.recipes import load_run_config
from hllm_jax.report import MissingPlots, figures


def test_the_commands_it_shows_are_the_runs_it_makes(tmp_path: Path):
    chain = Chain("small", tmp_path / "a b", {"sft": ["train.steps=7"]})
    for name in ("pretrain", "sft"):
        hllm, train, config, *overrides = shlex.split(chain.commands[name])
        assert (hllm, train) == ("hllm", "train")
        assert load_run_config(config, overrides)[1] == chain.config(name)
        assert chain.config(name).run.dir == str(tmp_path / "a b" / name)
    assert chain.config("sft").model.load == chain.config("pretrain").run.dir
    assert chain.config("sft").train.steps == 7


@pytest.mark.parametrize("scale", ["small", "medium", "large"])
def test_every_scale_has_its_two_configurations(tmp_path: Path, scale):
    chain = Chain(scale, tmp_path, {})
    assert chain.config("pretrain").recipe == "pretrain"
    assert chain.config("sft").recipe == "sft"
    # Alone, the SFT configuration finds the base model that the other one makes.
    assert f"quickstart-{scale}" in chain.config("sft").base


def test_an_unknown_scale(tmp_path: Path):
    with pytest.raises(ValueError, match="'tiny': one of small, medium, large"):
        Chain("tiny", tmp_path, {})  # pyrefly: ignore


def test_a_folder_belongs_to_one_scale(tmp_path: Path):
    Chain("small", tmp_path, {}).begin()
    Chain("small", tmp_path, {}).begin()
    with pytest.raises(ValueError, match=r"holds a quickstart of scale small.*--out"):
        Chain("medium", tmp_path, {}).begin()


def test_a_bucket_is_no_folder_to_work_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from hllm_jax.quickstart import quickstart

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--out gs://bucket/quick: must be a local path for now"):
        quickstart(out="gs://bucket/quick")
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_an_interrupted_stage_adds_up(tmp_path: Path):
    chain = Chain("small", tmp_path, {})
    chain.begin()
    chain.took("tokenizer", 2.0)
    chain.took("pretrain", 30.0)
    again = Chain("small", tmp_path, {})
    again.took("pretrain", 12.0)
    assert [(step.name, step.seconds) for step in again.facts.steps] == [
        ("tokenizer", 2.0),
        ("pretrain", 42.0),
    ]


def test_a_missing_matplotlib_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hllm_jax.quickstart import quickstart

    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPlots, match=r"hllm-jax\[report\]"):
        quickstart(out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seconds", "said"), [(3.4, "3 s"), (60.0, "1 min 00 s"), (459.6, "7 min 40 s")])
def test_durations(seconds: float, said: str):
    assert minutes(seconds) == said
