"""The table of rollouts: whole iterations, written beside training, cut back where a run goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.rl.table import NAME, RolloutTable
from hllm_jax.training.hooks import Moment


def rows(count: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "prompt": ["问"] * count,
        "completion": [f"answer {i}\n" for i in range(count)],
        "score": np.arange(count, dtype=np.float32) / 10,
        "kl": np.zeros(count, np.float32),
        "advantage": np.ones(count, np.float32),
        "length": np.full(count, 3),
        "ended": np.ones(count, bool),
        **more,
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / NAME).read_text("utf-8").splitlines()]


def filled(folder: Path, steps: int, after: int = 0) -> list[dict[str, Any]]:
    table = RolloutTable(folder, after)
    for step in range(after + 1, steps + 1):
        table.add(step, rows)
    table.close()
    return lines(folder)


def test_a_line_an_answer(tmp_path: Path) -> None:
    table = RolloutTable(tmp_path)
    table.add(1, lambda: rows(score=np.array([0.1, np.nan], np.float32), record=[7, 8]))
    table.add(2, lambda: {name: list(column) for name, column in rows(1).items()})
    table.close()
    found = lines(tmp_path)
    assert found[0] == {
        "step": 1,
        "prompt": "问",
        "completion": "answer 0\n",
        "score": 0.1,
        "kl": 0.0,
        "advantage": 1.0,
        "length": 3,
        "ended": True,
        "record": 7,
    }
    assert found[1]["score"] is None
    assert [line["step"] for line in found] == [1, 1, 2]


def test_it_writes_beside_what_goes_on_and_a_checkpoint_waits_for_it(tmp_path: Path) -> None:
    table, wait = RolloutTable(tmp_path), threading.Event()

    def make() -> dict[str, Any]:
        assert threading.current_thread() is not threading.main_thread()
        wait.wait(10)
        return rows(score=np.asarray(jnp.ones(2)))

    table.add(1, make)
    assert not (tmp_path / NAME).read_text()
    hook = table.hook(2)
    state: Any = None
    assert [hook.due(Moment(step, state)) for step in (1, 2)] == [False, True]
    assert hook.due(Moment(1, state, interrupted=True))
    wait.set()
    hook.act(Moment(2, state))
    assert len(lines(tmp_path)) == 2
    hook.close()


@pytest.mark.parametrize("tail", ["", '{"step": 5, "prompt": "cut', "\n", '{"no": "step"}\n'])
def test_a_run_that_goes_on_writes_what_one_that_never_stopped_does(tmp_path: Path, tail: str) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    wanted = filled(tmp_path / "whole", 6)
    filled(tmp_path / "cut", 4)
    with (tmp_path / "cut" / NAME).open("a") as file:
        file.write(tail)
    assert filled(tmp_path / "cut", 6, after=3) == wanted


def test_a_run_that_begins_anew_has_no_rows_of_another(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    assert [line["step"] for line in filled(tmp_path, 1)] == [1, 1]


@pytest.mark.parametrize(
    ("more", "problem"),
    [({"score": np.zeros(3)}, "columns of different lengths"), ({"kl": None}, "no column kl")],
)
def test_what_is_no_table_stops_the_run(tmp_path: Path, more: dict[str, Any], problem: str) -> None:
    table = RolloutTable(tmp_path)
    given = {name: column for name, column in rows(**more).items() if column is not None}
    table.add(4, lambda: given)
    with pytest.raises(RuntimeError, match=f"rollouts.jsonl: step 4: {problem}"):
        table.flush()
    with pytest.raises(RuntimeError, match=problem):
        table.add(5, rows)
    with pytest.raises(RuntimeError, match=problem):
        table.close()
