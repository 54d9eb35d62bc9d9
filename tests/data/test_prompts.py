"""Prompts: every form of a question, one a row, pure in (config, seed, n), and with its whole record."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hllm_jax.data import Batches, DataConfig, DataError, PromptConfig, SourceConfig, inspect
from hllm_jax.data.prompts import parse_prompt
from hllm_jax.data.shapes import prompt_shapes
from hllm_jax.testing.corpora import write_jsonl
from hllm_jax.testing.tokenizer import PAD, ByteTokenizer

TOKENIZER = ByteTokenizer()
ASKED = ({"role": "user", "content": "Q"},)
CHAT = [*ASKED, {"role": "assistant", "content": "A"}]


def batches_of(path: Path, window: int = 64, prompts: PromptConfig | None = None, **settings: Any) -> Batches:
    shape: dict[str, Any] = {"batch_size": 4, "seed": 0, "epochs": None}
    given = {name: settings.pop(name) for name in list(settings) if name in shape}
    source = SourceConfig(path=str(path), malformed=settings.pop("malformed", "error"))
    config = DataConfig(
        sources=(source,), **{"packing": "none", "overlong": "error", "holdout": 0.0, **settings}
    )
    return config.build(
        TOKENIZER, **(shape | given), sequence_length=window, objective=prompts or PromptConfig()
    )


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "Q"},
        {"prompt": list(ASKED), "answer": 4},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"question": "Q", "answer": "4"},
        {"source": "Q", "target": "A"},
        {"messages": CHAT},
        {"messages": list(ASKED)},
        CHAT,
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"instruction": "Q"},
        {"instruction": "Q", "output": "A"},
    ],
)
def test_every_form_asks_the_same(value: Any) -> None:
    record = parse_prompt(value, "here", PromptConfig())
    assert record.messages == ASKED
    assert record.asked is not None
    assert record.asked.record == (value if isinstance(value, dict) else {"messages": value})
    assert record.content_hash() == parse_prompt({"prompt": "Q"}, "there", PromptConfig()).content_hash()


def test_a_conversation_is_asked_up_to_its_last_answer() -> None:
    record = parse_prompt([*CHAT, *CHAT], "here", PromptConfig(system="S"))
    assert record.messages == ({"role": "system", "content": "S"}, *CHAT, *ASKED)


@pytest.mark.parametrize(
    ("value", "form", "problem"),
    [
        ({"prompt": " \n"}, "chat", "the prompt is empty"),
        ({"text": ""}, "text", "the prompt is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "chat", "the prompt is empty"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "chat", "nothing is asked"),
        ({"answer": "4"}, "chat", "nothing is asked; keys seen: 'answer'"),
        ({"prompt": "Q", "messages": CHAT}, "chat", "ambiguous: prompt and messages"),
        ({"prompt": 3}, "chat", "prompt is a string, not int 3"),
        ({"messages": CHAT}, "text", "set prompts.form: chat"),
        ({"text": "abc"}, "chat", "set prompts.form: text"),
        ("abc", "chat", "a record is a JSON object"),
    ],
)
def test_what_asks_nothing_is_refused_with_its_place(value: Any, form: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"file:3: .*{problem}"):
        parse_prompt(value, "file:3", PromptConfig(form=form))


def test_batches_are_pure_and_every_prompt_comes_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    records = [{"prompt": f"{i}+{i}?", "answer": 2 * i} for i in range(10)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    batches, again = batches_of(path), batches_of(path)
    numbers = []
    for n in (4, 0, 1, 2, 3):
        batch = batches[n]
        shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
        assert shapes == prompt_shapes(4, 64)
        for name, array in again[n].items():
            np.testing.assert_array_equal(array, batch[name])
        for row, number in enumerate(batch["records"]):
            record = batches.record(int(number))
            assert record == records[int(number)]
            wanted = TOKENIZER.render([{"role": "user", "content": record["prompt"]}], None, True)[0]
            assert batch["lengths"][row] == len(wanted)
            assert batch["tokens"][row].tolist() == wanted + [PAD] * (64 - len(wanted))
    numbers = [int(number) for n in range(5) for number in batches[n]["records"]]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]
    assert batches.fingerprint == again.fingerprint
    assert batches.fingerprint != batches_of(path, prompts=PromptConfig(system="S")).fingerprint
    with pytest.raises(IndexError, match="record 10 of 10"):
        batches.record(10)


def test_the_last_batch_of_the_epochs_is_filled_with_prompts(tmp_path: Path) -> None:
    batches = batches_of(write_jsonl(tmp_path / "a.jsonl", [{"prompt": str(i)} for i in range(6)]), epochs=1)
    assert len(batches) == 2
    assert (batches[1]["lengths"] > 0).all()
    seen = Counter(int(number) for n in range(2) for number in batches[n]["records"])
    assert sorted(seen) == list(range(6))
    assert batches.rows(1, 2, 4)["records"].tolist() == batches[1]["records"][2:].tolist()


def test_records_of_a_mixture_have_numbers_over_all_sources(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name * 3}] * 2) for name in "ab"]
    sources = tuple(SourceConfig(path=str(path), weight=1.0) for path in paths)
    data = DataConfig(sources=sources, packing="none", overlong="error", holdout=0.0)
    batches = data.build(
        TOKENIZER, batch_size=4, sequence_length=64, seed=0, objective=PromptConfig(form="text")
    )
    for row, number in enumerate(batches[0]["records"]):
        text = batches.record(int(number))["prompt"]
        assert text == ("aaa", "bbb")[number // 2]
        length = batches[0]["lengths"][row]
        assert TOKENIZER.decode(batches[0]["tokens"][row, :length], skip_special=True) == text


def test_a_text_is_asked_by_its_beginning_and_a_question_is_not_cut(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "abcdefgh"}, {"text": "ab"}, {"prompt": "abcdef"}])
    batches = batches_of(path, prompts=PromptConfig(form="text", beginning=4), shuffle=False, batch_size=3)
    batch = batches[0]
    texts = [TOKENIZER.decode(row[:n]) for row, n in zip(batch["tokens"], batch["lengths"], strict=True)]
    assert texts == ["<|bos|>abcd", "<|bos|>ab", "<|bos|>abcdef"]
    assert batches.record(0) == {"text": "abcdefgh"}


def test_a_prompt_longer_than_the_window_is_named_or_dropped_and_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b" * 70}, {"prompt": "c"}])
    with pytest.raises(DataError, match=r"a.jsonl:2: 1 of 3 prompts are longer than the window of 64 tokens"):
        batches_of(path)
    batches = batches_of(path, overlong="drop", batch_size=2)
    assert batches.rows_per_epoch == 2
    assert batches.stats["dropped_overlong"] == 1
    assert set(batches[0]["records"].tolist()) == {0, 2}
    with pytest.raises(DataError, match="a prompt that is cut asks something else"):
        batches_of(path, overlong="truncate")
    with pytest.raises(DataError, match=r"no prompt of 3 fits .* raise rollout.prompt_window"):
        batches_of(path, window=3, overlong="drop")


def test_empty_prompts_stop_or_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": ""}])
    with pytest.raises(DataError, match=r"a.jsonl:2: the prompt is empty"):
        batches_of(path)
    batches = batches_of(path, malformed="skip")
    assert batches.data.counts["malformed"] == 1
    assert batches.rows_per_epoch == 1


def test_inspect_shows_prompts_and_their_records(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "2+2?", "answer": 4}, {"prompt": "x" * 90}])
    config = DataConfig(sources=(SourceConfig(path=str(path)),), packing="none", overlong="drop", holdout=0.0)
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(
        inspect(config, TOKENIZER, batch_size=1, sequence_length=64, rows=1, objective=PromptConfig())
    )
    shown = console.export_text()
    for part in ("2+2?", "assistant", 'record 0: {"prompt": "2+2?", "answer": 4}', "dropped: 1"):
        assert part in shown
