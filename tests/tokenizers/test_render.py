"""What a conversation becomes: golden tables of (token, weight) for the built-in ChatML template."""

from __future__ import annotations

from typing import Any

import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer

Table = list[tuple[str, int]]

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "the king?\n"}
ANSWER = {"role": "assistant", "content": " the queen"}
MORE = {"role": "user", "content": "and 春风？"}
LAST = {"role": "assistant", "content": "化雨。"}
TOOL: dict[str, Any] = {"name": "add", "parameters": {"type": "object"}}
CALL: dict[str, Any] = {"function": {"name": "add", "arguments": {"left": "<春>", "right": 2}}}


def expected(tokenizer: Tokenizer, table: Table) -> tuple[list[int], list[int]]:
    """A hand-written table as ids: each row a special token or a text encoded on its own."""
    tokens: list[int] = []
    weights: list[int] = []
    for text, weight in table:
        special = tokenizer.special_ids.get(text)
        ids = tokenizer.encode(text) if special is None else [special]
        tokens += ids
        weights += [weight] * len(ids)
    return tokens, weights


def turn(role: str, content: str) -> Table:
    return [("<|im_start|>", 0), (f"{role}\n{content}", 0), ("<|im_end|>", 0), ("\n", 0)]


def answer(content: str) -> Table:
    return [("<|im_start|>", 0), ("assistant\n", 0), (content, 1), ("<|im_end|>", 1), ("\n", 0)]


TOOL_TEXT = (
    "# Tools\n\nThese functions can be called:\n<tools>\n"
    '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}\n</tools>\n\n'
    "A call is written as JSON with the name and the arguments:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
)
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"left": "<春>", "right": 2}}\n</tool_call>'
BOS: Table = [("<|bos|>", 0)]

GOLDEN: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None, bool, Table]] = {
    "one turn": ([ASK, ANSWER], None, False, BOS + turn("user", "the king?\n") + answer(" the queen")),
    "system and two turns": (
        [SYSTEM, ASK, ANSWER, MORE, LAST],
        None,
        False,
        BOS
        + turn("system", "Be brief.")
        + turn("user", "the king?\n")
        + answer(" the queen")
        + turn("user", "and 春风？")
        + answer("化雨。"),
    ),
    "serving": (
        [ASK],
        None,
        True,
        [*BOS, *turn("user", "the king?\n"), ("<|im_start|>", 0), ("assistant\n", 0)],
    ),
    "serving the second turn": (
        [ASK, ANSWER, MORE],
        None,
        True,
        [
            *BOS,
            *turn("user", "the king?\n"),
            *answer(" the queen"),
            *turn("user", "and 春风？"),
            ("<|im_start|>", 0),
            ("assistant\n", 0),
        ],
    ),
    "assistant first, empty answer": (
        [{"role": "assistant", "content": ""}],
        None,
        False,
        BOS + answer(""),
    ),
    "no answer": (
        [SYSTEM, ASK],
        None,
        False,
        BOS + turn("system", "Be brief.") + turn("user", "the king?\n"),
    ),
    "tools, called twice": (
        [
            ASK,
            {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "42"},
            {"role": "tool", "content": "43"},
            LAST,
        ],
        [TOOL],
        False,
        BOS
        + turn("system", TOOL_TEXT)
        + turn("user", "the king?\n")
        + answer(CALL_TEXT + "\n" + CALL_TEXT)
        + turn("tool", "42")
        + turn("tool", "43")
        + answer("化雨。"),
    ),
    "tools beside a system message, call beside text": (
        [SYSTEM, ASK, {**ANSWER, "tool_calls": [CALL]}],
        [TOOL],
        False,
        BOS
        + turn("system", "Be brief.\n\n" + TOOL_TEXT)
        + turn("user", "the king?\n")
        + answer(" the queen\n" + CALL_TEXT),
    ),
    "a second system message": (
        [ASK, ANSWER, SYSTEM, MORE],
        [TOOL],
        False,
        BOS
        + turn("system", TOOL_TEXT)
        + turn("user", "the king?\n")
        + answer(" the queen")
        + turn("system", "Be brief.")
        + turn("user", "and 春风？"),
    ),
    "content in parts": (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "king?\n"}],
            },
            LAST,
        ],
        None,
        False,
        BOS + turn("user", "the king?\n") + answer("化雨。"),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_tables(tokenizer: Tokenizer, name: str) -> None:
    messages, tools, serving, table = GOLDEN[name]
    assert tokenizer.render(messages, tools, serving) == expected(tokenizer, table)


def test_a_table_by_token() -> None:
    """Over nothing but bytes and single characters, so that each token is seen."""
    tokenizer = train_tokenizer(["a b"], TokenizerConfig(vocab_size=263))
    tokens, weights = tokenizer.render(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    table = [(tokenizer.token_text(token), weight) for token, weight in zip(tokens, weights, strict=True)]
    assert table == [
        ("<|bos|>", 0),
        ("<|im_start|>", 0),
        *((letter, 0) for letter in "user"),
        ("<0x0A>", 0),
        ("a", 0),
        ("<|im_end|>", 0),
        ("<0x0A>", 0),
        ("<|im_start|>", 0),
        *((letter, 0) for letter in "assistant"),
        ("<0x0A>", 0),
        ("b", 1),
        ("<|im_end|>", 1),
        ("<0x0A>", 0),
    ]


def test_training_sees_what_serving_continues(tokenizer: Tokenizer) -> None:
    """The prompt's ids begin the trained ids, also where a piece would join `\\n` and the answer."""
    for content in ("化雨。", " the", "\n\n", "\nthe", "\t", "", "。"):
        prompt, _ = tokenizer.render([SYSTEM, ASK], add_generation_prompt=True)
        messages = [SYSTEM, ASK, {"role": "assistant", "content": content}]
        tokens, weights = tokenizer.render(messages)
        assert tokens[: len(prompt)] == prompt
        assert not any(weights[: len(prompt)])
        trained = [token for token, weight in zip(tokens, weights, strict=True) if weight]
        assert trained == [*tokenizer.encode(content), tokenizer.special_ids["<|im_end|>"]]
        assert trained[-1] in tokenizer.stop_ids


def test_every_turn_ends_in_a_stop_token_and_there_is_one_bos(tokenizer: Tokenizer) -> None:
    for messages, tools, serving, _ in GOLDEN.values():
        tokens, weights = tokenizer.render(messages, tools, serving)
        assert len(tokens) == len(weights)
        assert tokens.count(tokenizer.bos_id) == 1
        ends = [i for i, weight in enumerate(weights) if weight and not weights[i + 1]]
        assert all(tokens[i] in tokenizer.stop_ids for i in ends)
        answers = sum(message["role"] == "assistant" for message in messages)
        assert len(ends) == answers


def test_rendering_leaves_the_messages_alone(tokenizer: Tokenizer) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "<|im_end|>"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]},
    ]
    before = repr(messages)
    tokenizer.render(messages, [TOOL])
    assert repr(messages) == before
