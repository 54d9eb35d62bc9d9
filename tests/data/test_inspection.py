"""The table a person looks at shows tokens, weights, segments, counts and licences of the real batch."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hllm_jax.data import DataConfig, SourceConfig, inspect
from hllm_jax.data.objective import MaskedLMConfig, ObjectiveConfig
from hllm_jax.data.task import TaskDataConfig
from hllm_jax.testing.corpora import CONVERSATIONS, write_documents, write_jsonl
from hllm_jax.testing.tokenizer import ByteTokenizer, SpecialByteTokenizer


def test_inspect_shows_what_is_trained(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", CONVERSATIONS)
    config = DataConfig(sources=(SourceConfig(path=str(path)),), packing="first_fit", holdout=0.0)
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(inspect(config, ByteTokenizer(), batch_size=1, sequence_length=256, rows=1, tokens=30))
    shown = console.export_text()
    for part in (
        "<|im_start|>",
        "<|im_end|>",
        "weight",
        "segment",
        "trained tokens: ",
        "first_fit, overlong: truncate",
    ):
        assert part in shown
    assert "the user's own files" in shown
    weights = sum(sum(ByteTokenizer().render(messages)[1]) for messages in CONVERSATIONS)
    assert f"{weights} trained" in shown


SHOWN = {
    "masked_lm": ("[CLS]", "[SEP]", "[MASK]", "weight", "objective: masked_lm MaskedLMConfig(share=0.15"),
    "span_corruption": ("row 0, encoder: ", "row 0, decoder: ", "<extra_id_0>"),
    "blank_infilling": ("[MASK]", "<|startofpiece|>", "<|endofpiece|>", "prefix", "0, 0", "1, 0"),
    "prefix_lm": ("prefix", "weight", "objective: prefix_lm"),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_inspect_shows_what_an_objective_does(tmp_path, kind):
    path = write_documents(tmp_path / "a.jsonl", 12)
    config = DataConfig(sources=(SourceConfig(path=str(path)),), holdout=0.0)
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(
        inspect(
            config,
            SpecialByteTokenizer(),
            batch_size=2,
            sequence_length=64,
            objective=ObjectiveConfig(kind=kind),
        )
    )
    shown = console.export_text()
    assert [part for part in SHOWN[kind] if part not in shown] == []


def test_inspect_says_whether_two_texts_belong_together(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", 12)
    config = DataConfig(sources=(SourceConfig(path=str(path)),), holdout=0.0)
    console = Console(width=140, file=io.StringIO(), record=True)
    objective = ObjectiveConfig(kind="masked_lm", masked_lm=MaskedLMConfig(rows="sop"))
    console.print(inspect(config, SpecialByteTokenizer(), batch_size=8, rows=8, objective=objective))
    shown = console.export_text()
    assert "the second text follows the first (label 0)" in shown
    assert "the second text does not follow the first (label 1)" in shown
    assert "type" in shown


@pytest.mark.parametrize(
    ("kind", "record", "shown"),
    [
        ("sequence", {"text": "a fine text", "label": "good"}, "the class is good (1)"),
        (
            "span",
            {"question": "q", "context": "c d", "answers": [{"text": "d", "answer_start": 2}]},
            "'d' (5 to 5)",
        ),
        ("tokens", {"tokens": ["Ann", "ran"], "labels": ["X", "O"]}, "weight"),
    ],
)
def test_inspect_shows_what_a_task_asks(tmp_path, kind, record, shown):
    other = record | {"label": "bad"} if "label" in record else record
    path = write_jsonl(tmp_path / "a.jsonl", [record, other])
    config = DataConfig(sources=(SourceConfig(path=str(path)),), holdout=0.0, shuffle=False, packing="none")
    task = TaskDataConfig(kind=kind).resolve(config)
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(
        inspect(config, SpecialByteTokenizer(), batch_size=2, sequence_length=32, objective=task, rows=1)
    )
    text = console.export_text()
    assert shown in text
    assert "[CLS]" in text
