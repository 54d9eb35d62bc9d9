"""Rows of tasks: framed, truncated, and with the answer at the right tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.config import Invalid
from hllm_jax.data import Batches, DataConfig, DataError, SourceConfig, loader
from hllm_jax.data.examples import TaskKind
from hllm_jax.data.task import TaskDataConfig
from hllm_jax.testing.corpora import write_jsonl
from hllm_jax.testing.tokenizer import SpecialByteTokenizer
from tests.data.transforms.doubles import CLS, PAD, SEP, TOKENIZER, equal, rows_of


def task_batches(
    folder: Path,
    kind: TaskKind,
    records: list[dict[str, Any]],
    *,
    length: int = 48,
    tokenizer: SpecialByteTokenizer = TOKENIZER,
    **settings: Any,
) -> Batches:
    path = write_jsonl(folder / "examples.jsonl", records)
    data = DataConfig(sources=(SourceConfig(path=str(path)),), packing="none", shuffle=False, holdout=0.0)
    task = TaskDataConfig(kind=kind, **settings).resolve(data)
    return data.build(tokenizer, batch_size=4, sequence_length=length, seed=0, epochs=1, objective=task)


def said(row: dict[str, np.ndarray]) -> str:
    """The row with its special tokens, without padding."""
    return TOKENIZER.decode(row["tokens"][row["segment_ids"] > 0])


def test_classes_of_texts_and_of_two_texts(tmp_path: Path) -> None:
    records = [
        {"text": "很好", "label": "good"},
        {"text": "bad", "label": "bad"},
        {"text": "one", "pair": "two", "label": "good"},
    ]
    batches = task_batches(tmp_path, "sequence", records)
    rows = rows_of(batches)
    assert [said(row) for row in rows] == [
        "[CLS]很好[SEP]",
        "[CLS]bad[SEP]",
        "[CLS]one[SEP]two[SEP]",
    ]
    assert [int(row["labels"]) for row in rows] == [1, 0, 1]  # bad, good
    assert rows[2]["token_types"][:9].tolist() == [0] * 5 + [1] * 4
    batch = batches[0]
    assert batch["labels"].shape == batch["weights"].shape == (4,)
    assert batch["weights"].tolist() == [1, 1, 1, 0]
    assert (batch["tokens"][3] == PAD).all()


def test_the_longer_text_is_shortened_first(tmp_path: Path) -> None:
    records = [
        {"text": "a" * 30, "pair": "b" * 10, "label": 0},
        {"text": "a" * 30, "pair": "b" * 31, "label": 1},
        {"text": "a" * 60, "label": 0},
    ]
    batches = task_batches(tmp_path, "sequence", records, length=33)
    rows = rows_of(batches)
    assert [said(row) for row in rows] == [
        f"[CLS]{'a' * 20}[SEP]{'b' * 10}[SEP]",
        f"[CLS]{'a' * 15}[SEP]{'b' * 15}[SEP]",
        f"[CLS]{'a' * 31}[SEP]",
    ]
    assert batches.stats["truncated"] == 3


def test_words_are_asked_at_their_first_token(tmp_path: Path) -> None:
    records = [
        {"tokens": ["Ann", "met", "小", "明", "."], "labels": ["B-PER", "O", "B-PER", "I-PER", "O"]},
        {"tokens": ["x"], "labels": ["O"]},
    ]
    batches = task_batches(tmp_path, "tokens", records)
    row = rows_of(batches)[0]
    text = "Ann met 小明 ."
    assert said(row) == f"[CLS]{text}[SEP]"
    starts = [text.encode().index(word.encode()) for word in ("Ann", " met", " 小", "明", " .")]
    assert np.flatnonzero(row["weights"]).tolist() == [1 + start for start in starts]
    labels = batches.transform.form.classes
    assert labels == ("B-PER", "I-PER", "O")
    asked = row["targets"][row["weights"] > 0]
    assert [labels[label] for label in asked] == ["B-PER", "O", "B-PER", "I-PER", "O"]


def test_answers_are_found_in_the_tokens(tmp_path: Path) -> None:
    context = "小明 was born in 北京 in 1990."
    records = [
        {"question": "在哪里？", "context": context, "answers": [{"text": "北京", "answer_start": 15}]},
        {"question": "When?", "context": context, "answers": {"text": ["1990"], "answer_start": [21]}},
        {"question": "Why?", "context": context, "answers": []},
    ]
    answers = []
    for row in rows_of(task_batches(tmp_path, "span", records, length=96)):
        start, end = int(row["starts"]), int(row["ends"])
        answers.append(TOKENIZER.decode(row["tokens"][start : end + 1]))
        inside = row["tokens"][row["context"] > 0]
        assert TOKENIZER.decode(inside) == context
        assert not np.isin(inside, [CLS, SEP]).any()
    assert answers == ["北京", "1990", "[CLS]"]


def test_an_answer_that_is_cut_off_is_none(tmp_path: Path) -> None:
    records = [
        {"question": "q" * 9, "context": "x" * 40 + "here", "answers": [{"text": "here", "answer_start": 40}]}
    ]
    cut = rows_of(task_batches(tmp_path, "span", records, length=48))[0]
    assert (int(cut["starts"]), int(cut["ends"])) == (0, 0)
    kept = rows_of(task_batches(tmp_path, "span", records, length=48, longest_question=1))[0]
    assert TOKENIZER.decode(kept["tokens"][kept["starts"] : kept["ends"] + 1]) == "here"


class Lossy(SpecialByteTokenizer):
    """Forgets case and blanks, as WordPiece does."""

    def __init__(self) -> None:
        super().__init__()
        self.lossless = False

    def encode(self, text: str) -> list[int]:
        return super().encode("".join(text.lower().split()))


def test_answers_are_found_where_characters_are_lost(tmp_path: Path) -> None:
    context = "He moved,  with  Ann Lee, to 北京."
    records = [
        {"question": "Who?", "context": context, "answers": [{"text": "Ann Lee", "answer_start": 17}]},
        {"question": "哪?", "context": context, "answers": [{"text": "京", "answer_start": 30}]},
    ]
    rows = rows_of(task_batches(tmp_path, "span", records, length=96, tokenizer=Lossy()))
    found = [TOKENIZER.decode(row["tokens"][row["starts"] : row["ends"] + 1]) for row in rows]
    assert found == ["annlee", "京"]


def test_labels_are_given_or_read_from_the_training_split(tmp_path: Path) -> None:
    records = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    given = task_batches(tmp_path, "sequence", records, labels=("z", "y", "x"))
    assert [int(row["labels"]) for row in rows_of(given)] == [2, 1]
    with pytest.raises(DataError, match=r"examples\.jsonl:2: label 'y' is none of x, z"):
        task_batches(tmp_path, "sequence", records, labels=("x", "z"))
    with pytest.raises(Invalid, match="a single class leaves nothing to learn"):
        task_batches(tmp_path, "sequence", records[:1])


def test_other_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'an example of this task is \{"tokens", "labels"\}; seen: keys'):
        task_batches(tmp_path, "tokens", [{"text": "a", "label": "x"}])


def test_empty_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    records = [{"text": "a", "pair": "", "label": "x"}, {"text": "b", "label": "y"}]
    batches = task_batches(tmp_path, "sequence", records)
    assert batches.data.counts["untrained"] == 1
    assert [said(row) for row in rows_of(batches)] == ["[CLS]b[SEP]"]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_global_batch(tmp_path: Path, hosts: int) -> None:
    records = [{"text": f"text {n}", "label": n % 3} for n in range(30)]
    batches = task_batches(tmp_path, "sequence", records)
    share = 4 // hosts
    parts = [list(loader(batches, local=slice(h * share, (h + 1) * share))) for h in range(hosts)]
    for n in range(len(batches)):
        joined = {name: np.concatenate([part[n][name] for part in parts]) for name in batches[n]}
        assert equal(joined, batches[n])
