"""`hllm train` in two processes: what they do alone, together and one after the other, and who is refused."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hllm_jax.testing.corpora import write_documents, write_jsonl
from hllm_jax.training.metrics import read_lines

ROOT = Path(__file__).parents[2]

BASE = """
recipe: pretrain
run: {dir: base}
model: {encoder: {layers: 1, embed: 32, heads: 2, kv_heads: 2, mlp: 64, max_length: 32}}
tokenizer: {kind: wordpiece, vocab_size: 120}
objective: {kind: masked_lm}
data: {sources: [{path: documents.jsonl}], holdout: 0.2}
train: {steps: 2, batch_size: 8, sequence_length: 32}
eval: {every: 0}
"""
FINETUNE = """
recipe: finetune
base: base.yaml
model: {load: base}
task: {labels: [bad, good]}
data: {packing: none, sources: [{path: examples.jsonl}], holdout: 0.3}
schedule: {peak: 1.0e-3}
train: {epochs: 1, batch_size: 8, sequence_length: 32}
eval: {every: 3}
log: {every: 1, tensorboard: true, progress: false}
"""


POLICY = """
recipe: pretrain
run: {dir: runs/policy}
model: {decoder: {layers: 1, embed: 32, heads: 2, kv_heads: 2, mlp: 64, max_length: 32}}
tokenizer: {vocab_size: 300}
data: {sources: [{path: documents.jsonl}], packing: concat}
train: {steps: 1, batch_size: 4, sequence_length: 32}
schedule: {warmup: 0}
eval: {every: 0}
log: {every: 1, progress: false}
"""
GRPO = """
recipe: grpo
run: {dir: runs/grpo}
model: {load: runs/policy}
data: {sources: [{path: questions.jsonl}], holdout: 0.2, packing: none, overlong: drop}
prompts: {form: text}
reward: {kind: function, path: 'lengths.py:score'}
rollout: {group: 2, prompt_window: 12, max_tokens: 4}
schedule: {kind: constant, peak: 0.001, warmup: 0}
train: {steps: 2, batch_size: 4}
eval: {every: 2, batches: 1}
log: {every: 1, progress: false}
"""
LENGTHS = """
def score(prompts, completions, records):
    assert len(prompts) == 4, "half of eight"
    assert [prompt.split()[-1] for prompt in prompts] == [record["answer"] for record in records]
    return [len(p) + len(c) / 100 for p, c in zip(prompts, completions)]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_documents(tmp_path / "documents.jsonl", 100)
    examples = [{"text": f"{n} {side}", "label": side} for n in range(30) for side in ("bad", "good")]
    write_jsonl(tmp_path / "examples.jsonl", examples)
    (tmp_path / "base.yaml").write_text(BASE, "utf-8")
    (tmp_path / "finetune.yaml").write_text(FINETUNE, "utf-8")
    return tmp_path


def train(folders: list[Path], *arguments: str, roots: tuple[Path, ...] = ()) -> list[tuple[int, str]]:
    """`hllm train` in a process for each folder, of the checkout or of the copies `roots`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for index, folder in enumerate(folders):
        where = [
            f"distributed.coordinator=localhost:{port}",
            f"distributed.processes={len(folders)}",
            f"distributed.process={index}",
            "distributed.barrier_seconds=60",
            "distributed.heartbeat_seconds=10",
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str((*roots, ROOT, ROOT)[index]),
            "XLA_FLAGS": "",
            "HLLM_CACHE": str(folders[0] / "cache"),
        }
        command = [
            sys.executable,
            "-m",
            "hllm_jax",
            "train",
            *arguments,
            *(where if len(folders) > 1 else ()),
        ]
        started.append(
            subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)
        )
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.fixture
def asked(folder: Path) -> Path:
    """With a policy, and what GRPO asks it."""
    (folder / "policy.yaml").write_text(POLICY, "utf-8")
    ((status, said),) = train([folder], "policy.yaml")
    assert status == 0, said
    write_jsonl(folder / "questions.jsonl", [{"prompt": f"say {n}", "answer": str(n)} for n in range(40)])
    (folder / "grpo.yaml").write_text(GRPO, "utf-8")
    return folder


@pytest.mark.slow
def test_each_process_scores_its_own_answers(asked: Path) -> None:
    (asked / "lengths.py").write_text(LENGTHS, "utf-8")
    for status, said in train([asked, asked], "grpo.yaml"):
        assert status == 0, said
    lines = [json.loads(line) for line in (asked / "runs/grpo/rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1] * 8 + [2] * 8
    for line in lines:
        assert line["score"] == pytest.approx(len(line["prompt"]) + len(line["completion"]) / 100, abs=1e-5)


@pytest.mark.slow
def test_a_reward_that_fails_in_one_process_stops_all_and_saves(asked: Path) -> None:
    fails_once = """
from pathlib import Path
from collections import Counter
calls = Counter()
def score(prompts, completions, records):
    calls["all"] += 1
    if calls["all"] == 3:  # the first is of the evaluation before the first update
        mine = Path("failed")
        try:
            mine.mkdir()
        except FileExistsError:
            pass
        else:
            raise ValueError("no more")
    return [1.0 * len(text) for text in completions]
"""
    (asked / "lengths.py").write_text(fails_once, "utf-8")
    found = train([asked, asked], "grpo.yaml", "train.steps=4")
    assert [status for status, _ in found] == [2, 2], found
    assert all("no more" in said for _, said in found)
    assert sum("the rewards of another process failed: process" in said for _, said in found) == 1
    assert [path.name for path in (asked / "runs/grpo/checkpoints").glob("0*")] == ["00000001"]


@pytest.mark.slow
def test_finetuning_with_its_base_and_uneven_data(folder: Path) -> None:
    for status, said in train([folder, folder], "finetune.yaml", "run.dir=two"):
        assert status == 0, said
    ((status, said),) = train([folder], "finetune.yaml", "run.dir=one")
    assert status == 0, said

    two, one = (read_lines(folder / run / "metrics.jsonl") for run in ("two", "one"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    rows = json.loads((folder / "two" / "run.json").read_text("utf-8"))["data"]["rows"]
    assert rows % 8, "rows that divide show nothing"
    assert two[-1]["step"] == -(-rows // 8)
    assert any("eval/accuracy" in line for line in two)
    for ours, theirs in zip(two, one, strict=True):
        for name in {"loss", "eval/loss", "eval/accuracy", "eval/examples"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    assert len(list((folder / "two" / "tensorboard").iterdir())) == 1, "the coordinator alone writes events"


@pytest.mark.slow
def test_the_coordinator_alone_trains_a_tokenizer(folder: Path) -> None:
    text = "recipe: tokenizer\nrun: {dir: own}\ntokenizer: {vocab_size: 300}\n"
    (folder / "tokenizer.yaml").write_text(text + "data: {sources: [{path: documents.jsonl}]}\n", "utf-8")
    other = folder / "other"
    other.mkdir()
    (status, _), (second, said) = train([folder, other], str(folder / "tokenizer.yaml"))
    assert (status, second) == (0, 0), said
    assert (folder / "own" / "tokenizer").is_dir()
    assert not any(other.iterdir())


@pytest.mark.slow
def test_what_the_coordinator_refuses_all_refuse(folder: Path) -> None:
    (folder / "base").mkdir()
    with (folder / "base" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (status, said), (second, heard) = train([folder, folder], "base.yaml")
    assert (status, second) == (2, 2)
    assert "hllm train: another process (pid unknown) trains in base" in said
    assert f"({socket.gethostname()}, pid" in heard
    assert "ended with an error: another process (pid unknown) trains in base" in heard


@pytest.mark.slow
def test_other_data_behind_the_same_path_is_named(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    write_documents(other / "documents.jsonl", 99)
    found = train([folder, other], str(folder / "base.yaml"), f"run.dir={folder / 'run'}")
    for status, said in found:
        assert status == 2
        assert "the processes do not agree on the data of this run" in said
        assert "process 1" in said
        assert "data = " in said
    assert not (folder / "run" / "metrics.jsonl").exists(), "no step was done"


@pytest.mark.slow
def test_other_code_is_named(folder: Path) -> None:
    copy = folder / "copy"
    for name in ("hllm_jax", "train"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "hllm_jax" / "nn" / "norm.py").open("a", encoding="utf-8") as file:
        file.write("# another version\n")
    for status, said in train([folder, folder], "base.yaml", roots=(ROOT, copy)):
        assert status == 2
        assert "code files of hllm_jax = " in said
        assert "files of the recipe" not in said
    assert not (folder / "base" / "metrics.jsonl").exists(), "no step was done"
