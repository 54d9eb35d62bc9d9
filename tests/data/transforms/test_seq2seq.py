"""Pairs of texts: packed on both sides, truncated or refused, each target with its own source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.data import DataError
from tests.data.transforms.doubles import PAD, TOKENIZER, batches_of, rows_of

PAIRS: list[dict[str, Any]] = [
    {"source": f"translate {n}: " + "猫" * (n % 4), "target": f"cat {n} " * (1 + n % 3)} for n in range(50)
]


def pairs_of(row: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """(source, target) of every segment of a row."""
    found = []
    for number in range(1, int(row["segment_ids"].max()) + 1):
        source = row["tokens"][row["segment_ids"] == number]
        where = row["decoder_segment_ids"] == number
        target = row["targets"][where]
        assert source[-1] == target[-1] == TOKENIZER.eos_id
        assert (row["decoder_tokens"][where] == np.r_[PAD, target[:-1]]).all()
        assert (row["weights"][where] == 1).all()
        found.append((TOKENIZER.decode(source[:-1]), TOKENIZER.decode(target[:-1])))
    return found


@pytest.mark.parametrize("packing", ["concat", "first_fit", "none"])
def test_every_pair_is_there_once(tmp_path: Path, packing: str) -> None:
    batches = batches_of(tmp_path, "seq2seq", PAIRS, packing=packing, target_length=40)
    assert batches.lengths == (64, 40)
    found = [pairs_of(row) for row in rows_of(batches)]
    counted = Counter(pair for row in found for pair in row)
    assert counted == Counter((pair["source"], pair["target"]) for pair in PAIRS)
    assert (max(map(len, found)) > 1) == (packing != "none")
    trained = sum(len(pair["target"].encode()) + 1 for pair in PAIRS)
    assert batches.stats["trained_tokens"] == trained == sum(r["weights"].sum() for r in rows_of(batches))


def test_prompt_and_response_are_a_pair_too(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "seq2seq", [{"prompt": "中文", "response": "Chinese"}], target_length=16)
    assert pairs_of(rows_of(batches)[0]) == [("中文", "Chinese")]


def test_long_texts_lose_their_ends(tmp_path: Path) -> None:
    records = [{"source": "s" * 100, "target": "t" * 50}, {"source": "a", "target": "b"}]
    batches = batches_of(tmp_path, "seq2seq", records, target_length=20)
    found = sorted(pair for row in rows_of(batches) for pair in pairs_of(row))
    assert found == [("a", "b"), ("s" * 63, "t" * 19)]
    assert batches.stats["truncated"] == 1
    assert batches.stats["lost_tokens"] == 37 + 31


def test_long_texts_are_dropped_or_refused(tmp_path: Path) -> None:
    records = [{"source": "s" * 100, "target": "t"}, {"source": "a", "target": "b"}]
    batches = batches_of(tmp_path, "seq2seq", records, overlong="drop", target_length=20)
    assert [pair for row in rows_of(batches) for pair in pairs_of(row)] == [("a", "b")]
    assert batches.stats["dropped_overlong"] == 1
    with pytest.raises(DataError, match=r"1 of 2 pairs are too long: the longest source has 100 .*take 63"):
        batches_of(tmp_path, "seq2seq", records, overlong="error", target_length=20)


def test_empty_sides_are_dropped_and_counted(tmp_path: Path) -> None:
    records = [{"source": "", "target": "b"}, {"source": "a", "target": ""}, {"source": "a", "target": "b"}]
    batches = batches_of(tmp_path, "seq2seq", records, target_length=20)
    assert batches.data.counts["untrained"] == 2
    assert batches.stats["documents"] == 1


def test_other_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'records.jsonl:1: a record of this objective is {"source"'):
        batches_of(tmp_path, "seq2seq", ["only a text"])


def test_a_pair_is_a_conversation_of_two_turns_elsewhere(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "causal", [{"prompt": "Hi", "response": "Hello"}], packing="first_fit")
    tokens, weights = TOKENIZER.render(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    )
    row = rows_of(batches)[0]
    assert row["tokens"][: len(tokens) - 1].tolist() == tokens[:-1]
    assert row["weights"].sum() == sum(weights)
