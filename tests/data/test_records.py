"""Every accepted form becomes a text or a conversation; everything else is refused with its place."""

from __future__ import annotations

import pytest

from hllm_jax.data import DataError
from hllm_jax.data.records import held_out, parse_record

CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": CHAT},
        CHAT,
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "assistant", "value": "A"}]},
        {"conversations": [{"from": "user", "value": "Q"}, {"role": "assistant", "content": "A"}]},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "output": "A", "id": 7},
        {"messages": [CHAT[0] | {"content": [{"type": "text", "text": "Q"}]}, CHAT[1]]},
        {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}},
    ],
)
def test_conversation_forms_say_the_same(value):
    record = parse_record(value, "here")
    assert list(record.messages) == CHAT
    assert record.text is None
    assert record.content_hash() == parse_record(CHAT, "there").content_hash()


def test_text_forms():
    assert parse_record({"text": "abc", "id": 3}, "here").text == "abc"
    assert parse_record({"content": "abc"}, "here", field="content").text == "abc"


def test_alpaca_keeps_input_system_and_history():
    value = {"system": "S", "history": [["q", "a"]], "instruction": "Q", "input": "X", "output": "A"}
    roles = [(m["role"], m["content"]) for m in parse_record(value, "here").messages]
    assert roles == [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Q\nX"), ("assistant", "A")]


def test_tools_reach_the_template():
    tool = {"type": "function", "function": {"name": "f"}}
    assert parse_record({"messages": CHAT, "tools": [tool]}, "here").tools == (tool,)
    assert parse_record({"messages": CHAT, "tools": '[{"name": "f"}]'}, "here").tools == ({"name": "f"},)
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    assert parse_record([CHAT[0], call], "here").messages[1] == call


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"txt": "abc", "n": 1}, ["f.jsonl:3", "'txt'", "'n'", '{"text"}', '{"messages"']),
        ({"text": "a", "messages": CHAT}, ["ambiguous", "text and messages"]),
        ({"text": 5}, ["text is a string", "int 5"]),
        ({"text": None}, ["text is a string", "None"]),
        ("abc", ["not str 'abc'"]),
        ({"messages": [{"role": "bot", "content": "x"}]}, ["message 0", "unknown role 'bot'", "assistant"]),
        ({"conversations": [{"from": "robot", "value": "x"}]}, ["turn 0", "unknown role 'robot'", "human"]),
        ({"messages": [{"role": "user"}]}, ["message 0", '"content"', "'role'"]),
        ({"messages": [{"role": "user", "content": 3}]}, ["content is a string", "int 3"]),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["content is a string", "image"]),
        ({"messages": "hi"}, ["messages is a list", "str 'hi'"]),
        ({"conversations": [{"from": "human"}]}, ["turn 0", '"value"']),
        ({"instruction": "x"}, ['without "output"', "'instruction'"]),
        ([1, 2], ["message 0", "int 1"]),
        ({"messages": CHAT, "tools": "{"}, ["tools", "no JSON"]),
    ],
)
def test_errors_name_place_keys_and_remedy(value, said):
    with pytest.raises(DataError) as error:
        parse_record(value, "f.jsonl:3")
    for part in ["f.jsonl:3", *said]:
        assert part in str(error.value)


def test_held_out_share_nests_and_is_exact_enough():
    hashes = [parse_record({"text": str(n)}, "here").content_hash() for n in range(20_000)]
    small = {h for h in hashes if held_out(h, 0.01)}
    large = {h for h in hashes if held_out(h, 0.1)}
    assert small < large
    assert not any(held_out(h, 0.0) for h in hashes)
    assert 150 < len(small) < 250
    assert 1800 < len(large) < 2200
