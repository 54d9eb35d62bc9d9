"""One recipe of pretraining runs every objective, on the model that it is for, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hllm_jax.config import Invalid
from hllm_jax.recipes import load_run_config
from hllm_jax.testing.corpora import write_jsonl
from tests.data.transforms.doubles import texts

SIZES = "{layers: 1, embed: 16, heads: 2, kv_heads: 2, mlp: 32, max_length: 64}"
SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "causal": ("decoder", {}),
    "prefix_lm": ("decoder", {}),
    "masked_lm": ("encoder", {"tokenizer.mask_token": "true"}),
    "masked_lm-nsp": (
        "encoder",
        {
            "tokenizer.kind": "wordpiece",
            "tokenizer.vocab_size": "60",
            "objective.masked_lm.rows": "nsp",
            "train.accumulation": "2",
        },
    ),
    "blank_infilling": (
        "decoder",
        {
            "objective.blank_infilling.positions": "single",
            "objective.blank_infilling.document": "0.3",
            "tokenizer.mask_token": "true",
            "tokenizer.special_tokens": "['[gMASK]', '<|startofpiece|>', '<|endofpiece|>']",
        },
    ),
    "span_corruption": ("encoder_decoder", {"tokenizer.sentinels": "8"}),
    "seq2seq": ("encoder_decoder", {"objective.seq2seq.target_length": "32"}),
}
CONFIG = """
recipe: pretrain
run: {dir: runs/x}
model: {}
data: {sources: [{path: records.jsonl}], holdout: 0.2}
train: {steps: 4, batch_size: 16, sequence_length: 64}
schedule: {warmup: 1}
checkpoint: {every: 2}
eval: {every: 2, batches: 1}
log: {every: 1, progress: false}
"""


def run(name: str, *more: str) -> Any:
    """The last state of a run of a few updates in the current folder."""
    kind, _, _ = name.partition("-")
    architecture, settings = SETTINGS[name]
    records = [{"text": text} for text in texts(200)]
    if kind == "seq2seq":
        records = [{"source": each["text"][:40], "target": each["text"][-20:]} for each in records]
    write_jsonl(Path("records.jsonl"), records)
    Path("run.yaml").write_text(CONFIG, encoding="utf-8")
    overrides = {f"model.{architecture}": SIZES, "objective.kind": kind, "tokenizer.vocab_size": "340"}
    given = [f"{key}={value}" for key, value in (overrides | settings).items()]
    module, config = load_run_config("run.yaml", [*given, *more])
    return module.main(config)


def lines(folder: str = "runs/x") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_every_objective_trains_and_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = run(name, "schedule.kind=constant")
    trained = [line for line in lines() if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) and line["tokens"] > 0 for line in trained)
    evaluated = [line for line in lines() if "eval/loss" in line]
    assert [line["step"] for line in evaluated] == [0, 2, 4]
    assert ("eval/bits_per_byte" in evaluated[-1]) == (name == "causal")
    assert ("eval/pair_accuracy" in evaluated[-1]) == (name == "masked_lm-nsp")
    run(name, "schedule.kind=constant", "run.dir=runs/y", "train.steps=2", "eval.every=0")
    resumed = run(name, "schedule.kind=constant", "run.dir=runs/y", "eval.every=0")
    jax.tree.map(np.testing.assert_array_equal, resumed.trainable, whole.trainable)


def test_a_masked_language_model_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them in the fast tests: pairs, two microbatches, two means."""
    monkeypatch.chdir(tmp_path)
    run("masked_lm-nsp", "train.steps=2")
    last = [line for line in lines() if "pair_loss" in line][-1]
    assert last["loss"] == pytest.approx(last["nll"] + last["pair_loss"], rel=1e-5)


def test_a_loaded_model_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("causal", "train.steps=1", "eval.every=0")
    Path("load.yaml").write_text(CONFIG.replace("model: {}", "model: {load: runs/x}"), encoding="utf-8")
    module, config = load_run_config("load.yaml", ["run.dir=runs/y", "objective.kind=masked_lm"])
    with pytest.raises(Invalid, match="masked_lm is for models of the kind encoder, and this one"):
        module.main(config)
