"""Tiny corpora for tests: a few documents and conversations in both languages, and files made of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DOCUMENTS = (
    "To be, or not to be, that is the question.",
    "学而时习之，不亦说乎？",
    "Tokens are predicted one after the other 🙂.",
    "def f(x):\n    return x + 1\n",
    "有朋自远方来，不亦乐乎？ It is a pleasure.",
)

CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi, how are you?"}],
    [
        {"role": "system", "content": "你是一个AI助手"},
        {"role": "user", "content": "一加一等于几？"},
        {"role": "assistant", "content": "二。"},
        {"role": "user", "content": "And in English?"},
        {"role": "assistant", "content": "Two."},
    ],
)


def documents(count: int) -> list[str]:
    """`count` documents of different lengths, no two alike."""
    return [f"{number}: " + DOCUMENTS[number % len(DOCUMENTS)] * (1 + number % 7) for number in range(count)]


def conversations(count: int) -> list[list[dict[str, Any]]]:
    """`count` conversations of different lengths, no two alike."""
    return [
        [
            {"role": "user", "content": f"Question {number}? " + "为什么" * (number % 5)},
            {"role": "assistant", "content": f"Answer {number}. " + "因为 " * (number % 11)},
        ]
        for number in range(count)
    ]


def write_jsonl(path: Path, records: Iterable[object]) -> Path:
    """Write one JSON value a line; returns the path."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def write_documents(path: Path, count: int) -> Path:
    """A .jsonl file of `{"text"}` records."""
    return write_jsonl(path, ({"text": text} for text in documents(count)))


def write_conversations(path: Path, count: int) -> Path:
    """A .jsonl file of `{"messages"}` records."""
    return write_jsonl(path, ({"messages": messages} for messages in conversations(count)))
