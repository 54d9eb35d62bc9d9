"""Conversations that are not of the documented form are refused, with the place and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from hllm_jax.tokenizers import MessageError, Tokenizer

USER = {"role": "user", "content": "x"}


@pytest.fixture
def own(trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained["bpe"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the list of messages is empty"),
        ("hello", r"must be a list of .* not str 'hello'"),
        (USER, "must be a list of .* not dict"),
        ([USER, "x"], "message 1 must be an object"),
        ([USER, {"content": "x"}], r'message 1 has no "role" \(its keys: content\)'),
        (
            [USER, {"role": "human", "content": "x"}],
            "message 1 has the unknown role 'human'; valid roles are system, user",
        ),
        ([{"role": ["user"], "content": "x"}], r"unknown role \['user'\]"),
        ([{"role": None, "content": "x"}], "unknown role None"),
        ([{"from": "human", "value": "x"}], r'message 0 has no "role" \(its keys: from, value\)'),
        ([{"role": "user"}], r'message 0 has no "content" \(its keys: role\)'),
        ([{"role": "user", "content": None}], "content must be a string .* not NoneType None"),
        (
            [{"role": "user", "content": 5}],
            "message 0: content must be a string or a list of text parts, not int 5",
        ),
        ([{"role": "user", "content": ["x"]}], "message 0, content part 0 must be"),
        ([{"role": "user", "content": [{"type": "image", "text": "x"}]}], "content part 0 must be"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "only an assistant calls tools"),
        ([{"role": "assistant", "tool_calls": "f()"}], "message 0: tool_calls must be a list, not str"),
        ([{"role": "assistant", "tool_calls": [{"id": 1}]}], "message 0, tool call 0 must be"),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x"}]}],
            "message 0, tool call 0: the arguments are not valid JSON",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}],
            "tool call 0: the arguments must be an object, not list",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": {1}}}]}],
            "tool call 0 cannot be written as JSON",
        ),
    ],
)
def test_messages(own: Tokenizer, messages: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        own.render(messages)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"name": "f"}, "tools must be a list"),
        ("f", "tools must be a list"),
        ([{"name": "f"}, {"type": "function"}], "tool 1 must be"),
        ([{"function": "f"}], "tool 0 must be"),
        ([{"name": "f", "parameters": {1, 2}}], "tool 0 cannot be written as JSON"),
    ],
)
def test_tools(own: Tokenizer, tools: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        own.render([USER], tools)


def test_forms_of_one_call(own: Tokenizer) -> None:
    """Arguments as object or JSON text, with or without the `function` level: the same ids."""
    calls = [
        {"name": "f", "arguments": {"x": 1}},
        {"name": "f", "arguments": '{"x":1}'},
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
    ]
    rendered = [
        own.render([USER, {"role": "assistant", "content": "", "tool_calls": [call]}]) for call in calls
    ]
    assert rendered[0] == rendered[1] == rendered[2]
    assert '{"name": "f", "arguments": {"x": 1}}' in own.decode(rendered[0][0])


def test_no_tools_is_the_same_as_an_empty_list(own: Tokenizer) -> None:
    assert own.render([USER], []) == own.render([USER], None) == own.render([USER])
