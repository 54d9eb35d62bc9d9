"""Rollouts in a report: numbers of every iteration, the curves, and who said what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hllm_jax.report import report
from hllm_jax.report.rollouts import chosen, read_rollouts
from tests.report.test_report import make_run, read


def write_rollouts(folder: Path, steps: int, answers: int = 5, tail: str = "") -> Path:
    """Answer i of step s has score s + i and KL s / 10."""
    path = folder / "rollouts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            for i in range(answers):
                line: dict[str, Any] = {
                    "step": step,
                    "prompt": "写一首诗 <b>",
                    "completion": f"answer {step}.{i}",
                }
                line |= {"score": float(step + i), "kl": step / 10, "advantage": i - 2.0, "length": 7}
                file.write(json.dumps(line | {"ended": i > 0}, ensure_ascii=False) + "\n")
        file.write(tail)
    return path


def test_numbers_of_an_iteration(tmp_path: Path) -> None:
    (step,) = read_rollouts(write_rollouts(tmp_path, 1, answers=20))
    assert (step.step, step.answers, step.scored) == (1, 20, 20)
    assert step.score == pytest.approx(10.5)
    assert (step.low, step.high) == (3.0, 18.0)
    assert step.kl == pytest.approx(0.1)
    assert step.length == 7
    assert step.ended == pytest.approx(0.95)
    assert [(name, line["completion"]) for name, line in step.examples] == [
        ("best", "answer 1.19"),
        ("typical", "answer 1.10"),
        ("worst", "answer 1.0"),
    ]


def test_answers_without_reward_and_torn_lines_are_no_numbers(tmp_path: Path) -> None:
    row = {"step": 2, "prompt": "a", "completion": "b", "score": None, "kl": None, "ended": False}
    path = write_rollouts(tmp_path, 1, tail=json.dumps(row) + "\n" + '{"step": 3, "prom')
    first, second = read_rollouts(path)
    assert (first.scored, second.answers, second.scored) == (5, 1, 0)
    assert (second.score, second.kl, second.examples) == (None, None, [])
    assert read_rollouts(tmp_path / "none.jsonl") == ()


def test_examples_are_of_the_first_the_last_and_steps_between(tmp_path: Path) -> None:
    steps = read_rollouts(write_rollouts(tmp_path, 10))
    assert [each.step for each in chosen(steps)] == [1, 4, 7, 10]
    assert [each.step for each in chosen(steps[:2])] == [1, 2]
    assert chosen(()) == []


def test_the_page_shows_curves_and_answers(tmp_path: Path) -> None:
    write_rollouts(make_run(tmp_path / "grpo"), 60)
    page = read(report(tmp_path / "grpo"))
    assert page.figures == 3
    for words in (
        "3.000 → 62.000 reward",
        "6.000 KL, nats per answer",
        "80 % answers that ended",
        "60, best 写一首诗 <b> answer 60.4 64.000 6.000 2.000",
        "1, worst 写一首诗 <b> answer 1.0 … 1.000 0.100 -2.000",
        "All 300 answers are in grpo/rollouts.jsonl",
        "Reward at KL",
    ):
        assert words in page.text


def test_a_run_whose_answers_have_no_reward_yet(tmp_path: Path) -> None:
    row = {"step": 1, "prompt": "a", "completion": "b", "score": None, "kl": None, "advantage": None}
    make_run(tmp_path / "ppo")
    (tmp_path / "ppo" / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    assert "1 answers without reward" in read(report(tmp_path / "ppo")).text
