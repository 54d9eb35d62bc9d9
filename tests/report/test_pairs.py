"""Held-out pairs in a report: accuracy beside that of length alone, margins and calibration."""

from __future__ import annotations

import json
from pathlib import Path

from hllm_jax.report import report
from tests.report.test_report import make_run, read


def test_the_page_shows_margins_and_calibration(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "reward")
    line = {"step": 60, "edges": [-0.5, 0.0, 0.5], "margins": [1.0, 0.0, 2.0, 5.0]}
    bins = {"count": [3.0, 5.0, 0.0], "confidence": [1.6, 4.0, 0.0], "right": [2.0, 5.0, 0.0]}
    (folder / "pairs.jsonl").write_text(json.dumps(line | bins) + "\n")
    measured = {"eval/loss": 0.5, "eval/accuracy": 0.875, "eval/longer_wins": 0.551}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 60, **measured, "eval/calibration_error": 0.125}) + "\n")
    page = read(report(folder))
    for words in (
        "0.875 accuracy on held-out pairs",
        "0.551 accuracy of “longer wins”",
        "0.125 calibration error",
        "Margins, step 60",
        "Calibration",
    ):
        assert words in page.text
    assert page.figures == 3


def test_a_run_without_pairs_has_no_such_figure(tmp_path: Path) -> None:
    assert "longer wins" not in read(report(make_run(tmp_path / "sft"))).text
