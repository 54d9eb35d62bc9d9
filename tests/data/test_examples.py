"""Examples of tasks: recognised by their keys, or refused with what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from hllm_jax.data import DataError
from hllm_jax.data.examples import Example, in_order, parse_example


@pytest.mark.parametrize(
    ("value", "example"),
    [
        ({"text": "好看", "label": 1}, Example("sequence", ("好看",), ("1",))),
        ({"text": "a", "pair": "b", "label": "same"}, Example("sequence", ("a", "b"), ("same",))),
        ({"text": "a", "pair": None, "label": "x"}, Example("sequence", ("a",), ("x",))),
        (
            {"tokens": ["小", "明"], "labels": ["B-PER", "I-PER"]},
            Example("tokens", ("小", "明"), ("B-PER", "I-PER")),
        ),
        (
            {"question": "q", "context": "ab cd", "answers": {"text": ["cd", "c"], "answer_start": [3, 3]}},
            Example("span", ("q", "ab cd"), (), ("cd", 3), ("cd", "c")),
        ),
        (
            {"question": "q", "context": "ab", "answers": [{"text": "b", "answer_start": 1}]},
            Example("span", ("q", "ab"), (), ("b", 1), ("b",)),
        ),
        (
            {"question": "q", "context": "ab", "answers": {"text": [], "answer_start": []}},
            Example("span", ("q", "ab")),
        ),
        ({"text": "only"}, None),
        ({"messages": []}, None),
    ],
)
def test_examples_are_recognised(value: dict[str, Any], example: Example | None) -> None:
    assert parse_example(value, "here:1") == example


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "a", "label": 0.5}, "a label is a text or a whole number, not 0.5"),
        ({"text": "a", "label": True}, "a label is a text or a whole number, not True"),
        ({"text": 3, "label": "x"}, "text and pair are strings"),
        ({"tokens": ["a"], "labels": ["x", "y"]}, "1 tokens have 2 labels"),
        ({"tokens": "a b", "labels": ["x"]}, "tokens is a list of words"),
        (
            {"question": "q", "context": "ab cd", "answers": [{"text": "cd", "answer_start": 2}]},
            "the answer 'cd' is not in the context at character 2: there is ' c'",
        ),
        (
            {"question": "q", "context": "c", "answers": [{"text": "c"}]},
            '"answer_start", its first character',
        ),
        ({"question": "q", "context": "c", "answers": "c"}, "answers is"),
        ({"question": "q", "context": None, "answers": []}, "question and context are strings"),
    ],
)
def test_what_is_wrong_is_said(value: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_example(value, "here:1")
    assert str(caught.value).startswith("here:1: ")
    assert message in str(caught.value)


def test_numbers_are_classes_in_their_order() -> None:
    assert in_order({"10", "9", "-1"}) == ("-1", "9", "10")
    assert in_order({"pos", "neg", "10"}) == ("10", "neg", "pos")
