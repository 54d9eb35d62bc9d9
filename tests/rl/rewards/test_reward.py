"""Functions that raise, hang, die, or give what is no reward: told, counted, and never taken for one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.rl.rewards import Reward, RewardConfig, RewardError

FUNCTIONS = """
import math, os, sys, time

def score(prompts, completions, records, scale=1.0):
    print("what is printed does not matter")
    return [scale * (len(c) - len(p) + r["bonus"]) for p, c, r in zip(prompts, completions, records)]

def picky(prompts, completions, records):
    if "bad" in completions:
        raise KeyError("bad")
    return [len(completions)] * len(completions)

def wild(prompts, completions, records):
    return [{"nan": math.nan, "inf": math.inf, "huge": 1e300, "none": None}.get(c, 1) for c in completions]

def one_less(prompts, completions, records):
    return [0.0] * (len(completions) - 1)

def words(prompts, completions, records):
    return ["good"] * len(completions)

def number(prompts, completions, records):
    return 3.0

def slow(prompts, completions, records):
    while "wait" in completions:
        pass
    return [1.0] * len(completions)

def judge(prompt, completion, record):
    if completion == "wait":
        time.sleep(1000)
    if completion == "die":
        os._exit(7)
    if completion == "raise":
        raise RuntimeError("no")
    return {"half": 0.5, "more": 2}.get(completion, completion == record["answer"])

def child(prompts, completions, records):
    import subprocess
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    open(records[0]["file"], "w").write(str(process.pid))
    time.sleep(1000)

not_a_function = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(FUNCTIONS)
    return str(path)


@pytest.fixture
def make(file: str) -> Iterator[Any]:
    made: list[Reward] = []

    def build(name: str, kind: Any = "function", **settings: Any) -> Reward:
        made.append(RewardConfig(kind=kind, path=f"{file}:{name}", **settings).build())
        return made[-1]

    yield build
    for reward in made:
        reward.close()


def ask(reward: Reward, *completions: str, **record: Any) -> np.ndarray:
    return reward(["prompt"] * len(completions), list(completions), [record] * len(completions))


def test_a_function_scores_texts_with_their_records(make: Any) -> None:
    reward = make("score", options={"scale": 0.5})
    found = reward(["a", "bb"], ["中文字", ""], [{"bonus": 1}, {"bonus": 0}])
    assert found.dtype == np.float32
    assert found.tolist() == [1.5, -1.0]
    assert reward.counts == {"asked": 2, "raised": 0, "timed_out": 0, "not_finite": 0}
    for _ in range(4):
        assert reward([], [], []).tolist() == []
    with pytest.raises(ValueError, match="1 prompts, 2 completions"):
        reward(["a"], ["b", "c"], [{}])


def test_the_answer_on_which_a_function_raises_is_named(make: Any) -> None:
    with pytest.raises(RewardError) as caught:
        ask(make("picky"), "good", "bad")
    for part in (
        "mine.py:picky",
        "raised KeyError: 'bad' (mine.py, line 10)",
        "'prompt'",
        "completion 'bad'",
    ):
        assert part in str(caught.value)
    assert "1 of 2 answers" in str(caught.value)


def test_skipped_answers_have_no_number_and_the_others_keep_theirs(make: Any) -> None:
    reward = make("picky", on_error="skip")
    np.testing.assert_array_equal(ask(reward, "good", "bad", "fine"), [2, np.nan, 2])
    assert reward.counts["raised"] == 1
    assert reward.metrics["reward/failed"] == pytest.approx(1 / 3)
    assert ask(reward, "good").tolist() == [1.0]
    assert reward.metrics["reward/failed"] == 0


def test_a_value_stands_for_missing_rewards(make: Any) -> None:
    assert ask(make("picky", on_error=-2.0), "good", "bad").tolist() == [1.0, -2.0]


@pytest.mark.parametrize("word", ["nan", "inf", "huge", "none"])
def test_what_is_no_finite_number_is_no_reward(make: Any, word: str) -> None:
    reward = make("wild", on_error="skip")
    np.testing.assert_array_equal(ask(reward, "good", word), [1, np.nan])
    assert reward.counts["not_finite"] == 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("wild", "gave no finite number"),
        ("one_less", r"returned 1 rewards for 2 completions"),
        ("words", "returned str 'good' as a reward"),
        ("number", "returned float 3.0, not a list"),
    ],
)
def test_a_run_stops_on_what_is_no_reward(make: Any, name: str, problem: str) -> None:
    with pytest.raises(RewardError, match=problem):
        ask(make(name), "good", "nan")


def test_a_function_that_hangs_is_ended_and_asked_again(make: Any) -> None:
    reward = make("slow", timeout=0.3, on_error="skip")
    begin = time.monotonic()
    assert np.isnan(ask(reward, "good", "wait")).all()
    assert time.monotonic() - begin < 5
    assert ask(reward, "good", "fine").tolist() == [1.0, 1.0]
    assert reward.counts["timed_out"] == 2
    with pytest.raises(RewardError, match=r"took longer than 0.3 s for 2 answers and was ended"):
        ask(make("slow", timeout=0.3), "wait", "wait")


def test_a_run_does_not_go_on_without_any_reward(make: Any) -> None:
    reward = make("one_less", on_error="skip")
    for _ in range(2):
        ask(reward, "a", "b")
    with pytest.raises(RewardError, match="3 calls in a row gave not one reward"):
        ask(reward, "a", "b")


def test_a_verifier_loses_only_the_answers_on_which_it_fails(make: Any) -> None:
    reward = make("judge", "verifier", timeout=0.5, on_error="skip")
    said = ("yes", "half", "raise", "no", "die", "more", "wait", "yes")
    found = ask(reward, *said, answer="yes")
    np.testing.assert_array_equal(found, [1, 0.5, np.nan, 0, np.nan, np.nan, np.nan, 1])
    assert reward.counts == {"asked": 8, "raised": 3, "timed_out": 1, "not_finite": 0}
    strict = make("judge", "verifier")
    with pytest.raises(RewardError, match=r"process ended with status 7(.|\n)*completion 'die'"):
        ask(strict, "yes", "die", answer="yes")
    with pytest.raises(RewardError, match="a share of 0 to 1"):
        ask(strict, "more", answer="yes")


def test_what_a_hanging_function_started_is_ended_too(make: Any, tmp_path: Path) -> None:
    reward = make("child", timeout=1.5, on_error=0.0)
    assert ask(reward, "a", file=str(tmp_path / "pid")).tolist() == [0.0]
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere.py:score", "there is no file nowhere.py"),
        ("no_such_package:score", "No module named 'no_such_package'"),
        ("{file}:scores", "has no function 'scores'; it has score, picky"),
        ("{file}:not_a_function", "has no function 'not_a_function'"),
        ("{broken}:f", "SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_loaded_says_why(
    file: str, tmp_path: Path, path: str, problem: str
) -> None:
    (tmp_path / "broken.py").write_text("def f(:")
    path = path.format(file=file, broken=tmp_path / "broken.py")
    with pytest.raises(RewardError, match=f"cannot be loaded: .*{problem}"):
        RewardConfig(kind="function", path=path).build()


def test_verifiers_that_come_with_the_package_by_name() -> None:
    with RewardConfig(kind="verifier", path="number").build() as reward:
        assert ask(reward, "it is 4", "it is 5", answer="4").tolist() == [1.0, 0.0]
