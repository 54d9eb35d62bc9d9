"""Preferences: what is recognised and refused, and the batches of pairs that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hllm_jax.config import Invalid
from hllm_jax.data import DataConfig, DataError, PairDataConfig, SourceConfig, inspect
from hllm_jax.data.preference_config import check_pairs
from hllm_jax.data.preferences import parse_preference
from hllm_jax.data.shapes import pair_shapes
from hllm_jax.testing import ByteTokenizer
from hllm_jax.testing.corpora import write_jsonl


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": [user("p")], "chosen": [says("a")], "rejected": "b"},
        {"prompt": "p", "chosen": [user("p"), says("a")], "rejected": [user("p"), says("b")]},
        {"chosen": [user("p"), says("a")], "rejected": [user("p"), says("b")]},
        {"prompt": "p", "answers": ["b", "a"], "scores": [1, 2]},
        {"prompt": "p", "answers": ["b", "a"], "ranks": [1, 0]},
    ],
)
def test_one_preference_in_all_its_forms(value: dict[str, Any]) -> None:
    found = parse_preference(value, "here:1")
    assert found.prompt == (user("p"),)
    assert found.comparisons == (((says("a"),), (says("b"),), 0.0),)


def test_a_ranking_is_all_its_pairs_but_ties_and_a_prompt_may_be_a_conversation() -> None:
    ranked = {"prompt": "p", "answers": ["a", "b", "c", "d"], "scores": [3, 1, 1, 0]}
    found = parse_preference(ranked, "here:1").comparisons
    assert [(c.chosen[0]["content"] + c.rejected[0]["content"]) for c in found] == [
        *("ab", "ac", "ad"),
        *("bd", "cd"),
    ]
    turns = [user("p"), says("x"), user("q")]
    long = parse_preference({"chosen": [*turns, says("a")], "rejected": [*turns, says("b")]}, "here:1")
    assert long.prompt == tuple(turns)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "here:1: chosen and rejected are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": " \n"}, "here:1: rejected is an empty answer"),
        ({"prompt": "p", "chosen": [user("p")], "rejected": "b"}, "chosen is an empty answer"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"chosen": "a", "rejected": "b"}, 'no common prompt: give "prompt"'),
        (
            {"chosen": [user("p"), says("a")], "rejected": [user("q"), says("b")]},
            "no common prompt: chosen and rejected differ from the first message on",
        ),
        ({"chosen": [user("p")], "rejected": [user("p"), says("b")]}, "chosen is an empty answer"),
        ({"prompt": "p", "chosen": [user("x")], "rejected": "b"}, "what the assistant says"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "1"}, "are finite numbers, not '1'"),
        ({"prompt": "p", "chosen": "a"}, "a preference is .*; seen: keys 'prompt', 'chosen'"),
        ({"prompt": "p", "answers": ["a", "b"], "scores": [1, 1]}, "all scores are alike"),
        ({"prompt": "p", "answers": ["a", "b"], "scores": [1]}, "lists of the same length"),
        ({"prompt": "p", "answers": ["a", "b"]}, 'come with "scores"'),
        ({"prompt": "p", "answers": ["a", "a"], "scores": [1, 2]}, "are the same"),
        ([user("p")], "a preference is"),
    ],
)
def test_what_is_no_preference_is_refused_with_its_place(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_preference(value, "here:1")


RECORDS = [
    {"prompt": "ab", "chosen": "long answer", "rejected": "no", "margin": 0.5},
    {"prompt": [user("x"), says("y"), user("z")], "chosen": "1", "rejected": "2"},
    {"prompt": "rank", "answers": ["a", "b", "c"], "ranks": [0, 1, 2]},
]


def batches(folder: Path, records: list[dict[str, Any]], length: int = 48, **more: Any) -> Any:
    pairs = PairDataConfig(form=more.pop("form", "chat"), unpaired=more.pop("unpaired", False))
    path = write_jsonl(folder / "pairs.jsonl", records)
    source = SourceConfig(path=str(path), malformed=more.pop("malformed", "error"))
    data = DataConfig(
        sources=(source,),
        packing="none",
        holdout=0.0,
        cache=str(folder / "cache"),
        **{"shuffle": False} | more,
    )
    shape: dict[str, Any] = {"batch_size": 8, "sequence_length": length, "seed": 0, "epochs": 1}
    return data.build(ByteTokenizer(), objective=pairs, **shape)


def test_a_batch_of_pairs(tmp_path: Path) -> None:
    tokenizer, found = ByteTokenizer(), batches(tmp_path, RECORDS)
    batch = found[0]
    shapes = pair_shapes(8, 48)
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == shapes
    for side, answers in (("chosen", ["long answer", "1"]), ("rejected", ["no", "2"])):
        for row, answer in enumerate(answers):
            tokens, weights = batch[f"{side}_tokens"][row], batch[f"{side}_weights"][row]
            record = RECORDS[row]["prompt"]
            prompt = [user(record)] if isinstance(record, str) else record
            whole, marks = tokenizer.render([*prompt, says(answer)])
            assert tokens[: len(whole)].tolist() == whole
            assert batch[f"{side}_segment_ids"][row].tolist() == [1] * len(whole) + [0] * (48 - len(whole))
            assert batch[f"{side}_positions"][row][: len(whole)].tolist() == list(range(len(whole)))
            # Of the answer alone, with its end, and not of what the assistant said before.
            learned = tokenizer.decode(tokens[weights > 0].tolist())
            assert learned.startswith(answer)
            assert weights.sum() == len(learned.replace("<|im_end|>", "e")) <= sum(marks)
    assert batch["margins"].tolist() == [0.5] + [0.0] * 7
    np.testing.assert_allclose(batch["pair_weights"], [1, 1, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0], rtol=1e-6)
    assert not batch["chosen_segment_ids"][5:].any()
    assert (found.stats["documents"], found.stats["truncated"]) == (5, 0)
    again = batches(tmp_path, RECORDS)
    assert again.fingerprint == found.fingerprint
    assert again.fingerprint != batches(tmp_path, RECORDS, length=40).fingerprint


def test_texts_go_on_where_the_prompt_ends(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    batch = batches(tmp_path, RECORDS[:1], form="text")[0]
    weights = batch["chosen_weights"][0] > 0
    assert tokenizer.decode(batch["chosen_tokens"][0][batch["chosen_segment_ids"][0] > 0].tolist()) == (
        "<|bos|>ablong answer<|eos|>"
    )
    assert tokenizer.decode(batch["chosen_tokens"][0][weights].tolist()) == "long answer<|eos|>"
    with pytest.raises(DataError, match=r"pairs\.form is text: set it to chat"):
        batches(tmp_path, RECORDS[1:2], form="text")


def test_single_answers_are_pairs_with_an_empty_side(tmp_path: Path) -> None:
    records = [
        {"prompt": "p", "completion": "good", "label": True},
        {"prompt": "q", "completion": "bad", "label": False},
        {"prompt": "x" * 30, "completion": "nothing of it fits", "label": True},
    ]
    found = batches(tmp_path, records, 24, form="text", unpaired=True)
    batch = found[0]
    assert batch["pair_weights"].sum() == 2
    assert batch["chosen_weights"].sum(axis=1)[:2].tolist() == [5, 0]
    assert batch["rejected_weights"].sum(axis=1)[:2].tolist() == [0, 4]
    assert batch["rejected_segment_ids"][0].sum() == batch["chosen_segment_ids"][1].sum() == 0
    assert (found.stats["dropped_untrained"], found.stats["trained_tokens"]) == (1, 9)
    assert batches(tmp_path, records[:2], unpaired=True)[0]["chosen_weights"][0].sum() > 0
    for record, message in (
        (RECORDS[0], "a single answer is .*; seen: keys 'prompt', 'chosen'"),
        (records[0] | {"label": 1}, "label is true or false, not int 1"),
        (records[0] | {"completion": " "}, "completion is an empty answer"),
    ):
        with pytest.raises(DataError, match=message):
            batches(tmp_path, [record], unpaired=True)


def test_what_is_too_long_is_cut_dropped_or_refused_and_counted(tmp_path: Path) -> None:
    records = [
        {"prompt": "p", "chosen": "a" * 30, "rejected": "b"},
        {"prompt": "q", "chosen": "a" * 25 + "x", "rejected": "a" * 25 + "y"},
        {"prompt": "r", "chosen": "a", "rejected": "b"},
    ]
    cut = batches(tmp_path, records, 24, form="text")
    assert cut[0]["chosen_weights"][0].sum() == 22
    assert cut[0]["pair_weights"].sum() == 2
    stats = cut.stats
    # The second pair is one text up to the end of the row: nothing is left to tell apart.
    assert (stats["overlong"], stats["truncated"], stats["dropped_untrained"]) == (2, 1, 1)
    assert stats["trained_tokens"] == 22 + 2 + 2 + 2
    assert stats["lost_trained_tokens"] == 9 + 27 + 27
    dropped = batches(tmp_path, records, 24, form="text", overlong="drop")
    assert (dropped.stats["dropped_overlong"], dropped.rows_per_epoch) == (2, 1)
    with pytest.raises(DataError, match=r"2 of 3 pairs are longer than a row .*33 tokens, a row holds 24"):
        batches(tmp_path, records, 24, form="text", overlong="error")
    with pytest.raises(DataError, match="none of 1 pairs differ within 24 tokens"):
        batches(tmp_path, records[1:2], 24, form="text")


def test_a_bad_record_is_refused_with_its_line_or_counted(tmp_path: Path) -> None:
    bad = [*RECORDS, {"prompt": "p", "chosen": "same", "rejected": "same"}]
    with pytest.raises(DataError, match=r"pairs.jsonl:4: chosen and rejected are the same"):
        batches(tmp_path, bad)
    assert batches(tmp_path, bad, malformed="skip").data.counts["malformed"] == 1


def test_all_answers_to_a_prompt_are_on_the_same_side_of_the_split(tmp_path: Path) -> None:
    records = [{"prompt": f"p{n // 4}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(120)]
    sides = []
    for split in ("train", "validation"):
        path = write_jsonl(tmp_path / "pairs.jsonl", records)
        source = (SourceConfig(path=str(path)),)
        data = DataConfig(sources=source, packing="none", holdout=0.3, cache=str(tmp_path / "cache"))
        shape: dict[str, Any] = {"batch_size": 200, "sequence_length": 32, "seed": 0, "epochs": 1}
        rows = data.build(ByteTokenizer(), objective=PairDataConfig(form="text"), split=split, **shape)[0]
        prompts = [bytes(row[1:4] - 5) for row in rows["chosen_tokens"][rows["pair_weights"] > 0]]
        sides.append(prompts)
    assert sum(map(len, sides)) == 120
    assert not set(sides[0]) & set(sides[1])


def test_sections_that_pairs_cannot_have_are_refused() -> None:
    data, pairs = DataConfig(packing="none"), PairDataConfig()
    check_pairs(data, pairs, "dpo")
    check_pairs(data, PairDataConfig(unpaired=True), "kto")
    with pytest.raises(Invalid, match="every pair has a row of its own"):
        check_pairs(DataConfig(packing="first_fit"), pairs, "dpo")
    with pytest.raises(Invalid, match="a pair cannot be split"):
        check_pairs(DataConfig(packing="none", overlong="split"), pairs, "dpo")
    with pytest.raises(Invalid, match="dpo compares two answers to a prompt"):
        check_pairs(data, PairDataConfig(unpaired=True), "dpo")


def test_both_sides_are_shown(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", RECORDS)
    data = DataConfig(
        sources=(SourceConfig(path=str(path)),), packing="none", holdout=0.0, cache=str(tmp_path / "cache")
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(inspect(data, ByteTokenizer(), sequence_length=48, objective=PairDataConfig()))
    text = console.export_text()
    assert "row 0, chosen" in text
    assert "row 0, rejected" in text
    assert "margin" in text
