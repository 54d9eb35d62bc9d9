"""Instructions and answer pairs, read out of an archive made here; the real one is 358 MB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hllm_jax.data import DataError, SourceConfig, corpora, texts
from hllm_jax.data.corpora import natural_instructions
from tests.data.made import tar

FOLDER = "bigbench-1.0.0/bigbench/benchmark_tasks/"


def task(*examples: tuple[str, list[str]]) -> bytes:
    """A task of BIG-bench's JSON form."""
    return json.dumps(
        {
            "canary": "not text to learn",
            "task_prefix": "Definition:  Answer\nthe question. ",
            "examples": [{"input": said, "target": targets} for said, targets in examples],
        }
    ).encode()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "bigbench-1.0.0.tar.gz"
    question = "Sentence: It rained. \nQuestion: How long?"
    fact = "Fact: Ice melts. \nQuestion: What melts? \nCorrect Answer: Ice."
    others = {
        number: task() for number in ("007", "008", "010", "011", "013", "014", "016", "017", "054", "055")
    }
    tasks = {
        "004": task((question, ["", "an hour.", "2 hours."]), ("Sentence: B \nQuestion: Q?", ["yes."])),
        "005": task(
            (question, ["An hour.", " a century. ", "a second."]), ("Sentence: C \nQuestion: Q?", ["no."])
        ),
        "025": task(("Context: A \nQuestion: Q? \nCorrect Answer: Same .", ["same .", " "])),
        "042": task((fact, ["Fire.", "Iron."])),
        "061": task(("Background paragraph: X", ["Y"]), ("Background paragraph: Z", [""])),
        **others,
    }
    files = {
        f"{FOLDER}natural_instructions/subtask{n}_name/task.json": content for n, content in tasks.items()
    }
    files[f"{FOLDER}natural_instructions/task.json"] = b'{"description": "of all"}'
    files[f"{FOLDER}other/task.json"] = b"not even JSON"
    path.write_bytes(tar(files, "gz"))
    return path


def examples(name: str, archive: Path) -> list[dict[str, Any]]:
    return [record for _, record in corpora.find(name).examples(archive)]


def test_instructions_become_conversations(archive: Path) -> None:
    found = examples("natural-instructions", archive)
    assert len(found) == 7
    assert found[0]["messages"] == [
        {
            "role": "user",
            "content": "Definition: Answer the question.\n\nSentence: It rained. \nQuestion: How long?",
        },
        {"role": "assistant", "content": "an hour."},
    ]
    assert "not text to learn" not in json.dumps(found)


def test_pairs_have_one_prompt_and_two_different_answers(archive: Path) -> None:
    assert examples("answer-pairs", archive) == [
        {
            "prompt": "Sentence: It rained. \nQuestion: How long?",
            "chosen": "an hour.",
            "rejected": "a century.",
        },
        {"prompt": "Fact: Ice melts. \nQuestion: What melts?", "chosen": "Ice.", "rejected": "Fire."},
    ]


def test_what_asks_about_the_same_text_is_held_out_together() -> None:
    asked = ["Passage: It  rained.\nQuestion: Why?", "Sentence: it rained! \nQuestion: How long?"]
    assert len({natural_instructions.key(said) for said in asked}) == 1
    assert natural_instructions.key("Passage: It snowed.\nQuestion: Why?") != natural_instructions.key(
        asked[0]
    )


def test_the_canary_is_disclosed() -> None:
    for name in ("natural-instructions", "answer-pairs"):
        assert "26b5c67b" in corpora.find(name).caveat


@pytest.mark.slow
def test_the_real_pairs_have_their_recorded_counts(shared_cache: Path) -> None:
    """Of the real package where it was fetched before: a test does not download 358 MB."""
    path = shared_cache / "packages" / natural_instructions.PACKAGE.file
    if not path.exists():
        pytest.skip(f"{path.name} is not in the cache; `hllm data prepare answer-pairs` fetches it")
    corpus = corpora.prepare("answer-pairs")
    pairs = [(split, record) for split, record in corpus.examples(path)]
    # 4,918 questions with answers of both kinds, and 13,000 whose right answer stands in the question.
    assert len(pairs) == corpus.train + corpus.validation == 4918 + 13000
    longer = sum(len(p["chosen"]) > len(p["rejected"]) for _, p in pairs)
    even = sum(len(p["chosen"]) == len(p["rejected"]) for _, p in pairs)
    assert (longer + even / 2) / len(pairs) == pytest.approx(0.55, abs=0.005)
    train, held = (
        {natural_instructions.key(p["prompt"]) for side, p in pairs if side == split}
        for split in ("train", "validation")
    )
    assert held
    assert not train & held
    with pytest.raises(DataError, match="keys seen: 'chosen', 'prompt', 'rejected'"):
        next(texts(SourceConfig(name="answer-pairs")))
    chats = corpora.find("natural-instructions")
    # One of 193,250 has no answer.
    assert chats.train + chats.validation == 193_250 - 1
    assert sum(1 for _ in chats.examples(path)) == 193_250 - 1
