"""A student beside its teacher: what is read, what is trained, how it goes on, and pairs that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hllm_jax.config import ConfigError
from hllm_jax.recipes import load_run_config
from hllm_jax.testing.corpora import write_documents
from hllm_jax.training import load_pretrained

SIZES = "{layers: 2, embed: 32, heads: 2, kv_heads: 2, mlp: 64, max_length: 64}"
SHARED = """
run: {dir: runs/x}
data: {sources: [{path: texts.jsonl}], holdout: 0.2, packing: concat}
optimizer: {weight_decay: 0.0}
schedule: {kind: constant, peak: 0.003, warmup: 1}
train: {steps: 4, batch_size: 8, sequence_length: 64}
checkpoint: {every: 2}
eval: {every: 2, batches: 1}
log: {every: 1, progress: false}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher in `runs/teacher`."""
    folder = tmp_path_factory.mktemp("distill")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_documents(Path("texts.jsonl"), 60)
        run(
            "pretrain",
            "tokenizer.vocab_size=300",
            "train.steps=30",
            "run.dir=runs/teacher",
            f"model.decoder={SIZES}",
        )
    return folder


def run(recipe: str, *overrides: str) -> Any:
    """The last state of a run in the current folder."""
    text = f"recipe: {recipe}\nmodel: {{}}\n{SHARED}"
    if recipe == "distill":
        text += "distill: {teacher: runs/teacher}\n"
    Path("run.yaml").write_text(text, encoding="utf-8")
    module, config = load_run_config("run.yaml", overrides)
    return module.main(config)


def held_out(folder: str) -> list[dict[str, float]]:
    lines = Path(folder, "metrics.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "eval/loss" in line]


def test_a_copy_of_the_teacher_has_nothing_to_learn(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the teacher's weights, whole and in their places, are needed for."""
    monkeypatch.chdir(workplace)
    state = run(
        "distill", "model.load=runs/teacher", "run.dir=runs/copy", "train.steps=1", "train.logit_chunks=4"
    )
    first = held_out("runs/copy")[0]
    assert first["eval/divergence"] == pytest.approx(0, abs=1e-6)
    assert first["eval/agreement"] == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        state.frozen["teacher"]["params"],
        load_pretrained("runs/teacher").params,
    )


@pytest.mark.slow
def test_a_student_from_nothing_comes_nearer_and_goes_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    settings = (
        "distill.kind=jsd",
        f"model.decoder={SIZES.replace('layers: 2', 'layers: 1')}",
        "train.steps=12",
    )
    whole = run("distill", *settings, "run.dir=runs/whole")
    before, *_, after = held_out("runs/whole")
    assert after["eval/divergence"] < 0.7 * before["eval/divergence"]
    student = load_pretrained("runs/whole")
    jax.tree.map(np.testing.assert_array_equal, student.params, whole.trainable["params"])

    run("distill", *settings, "run.dir=runs/parts", "train.steps=6")
    resumed = run("distill", *settings, "run.dir=runs/parts")
    jax.tree.map(np.testing.assert_array_equal, resumed.trainable, whole.trainable)


def test_pairs_that_do_not_go_together_are_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run(
        "pretrain",
        "tokenizer.vocab_size=310",
        "train.steps=1",
        "eval.every=0",
        "run.dir=runs/other",
        f"model.decoder={SIZES}",
    )
    with pytest.raises(ValueError, match="has another tokenizer than the student"):
        run("distill", "model.load=runs/other", "run.dir=runs/refused")
    short = SIZES.replace("max_length: 64", "max_length: 128")
    with pytest.raises(ValueError, match=r"is longer than the max_length 64 of distill\.teacher"):
        run("distill", f"model.decoder={short}", "train.sequence_length=128", "run.dir=runs/refused-2")
    with pytest.raises(ConfigError, match="larger than 0"):
        run("distill", "model.load=runs/teacher", "distill.temperature=0")
    with pytest.raises(ConfigError, match="is not used by forward_kl"):
        run("distill", "model.load=runs/teacher", "distill.mixture=0.3")
