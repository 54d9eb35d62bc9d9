"""`hllm generate` and `hllm chat` with a model that answers from a script."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hllm_jax.cli import chat, main, model
from hllm_jax.generation.request import Completion, Delta


class Parrot:
    """Repeats the last thing said, in two pieces, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.options: dict[str, Any] = {}
        self.tokenizer = self

    def generate(self, prompts: list[Any], **options: Any) -> list[Completion]:
        self.asked, self.options = prompts, options
        return [
            Completion(text=f"<{p}>", tokens=[1, 2], logprobs=[-0.5, 0.0], finish_reason="stop")
            for p in prompts
        ]

    def stream(self, messages: list[dict[str, str]], **options: Any) -> Iterator[Delta]:
        self.asked.append([dict(message) for message in messages])
        self.options = options
        text = messages[-1]["content"]
        if text == "long":
            raise ValueError("the prompt is longer than the context")
        completion = Completion(
            text=text, tokens=[], logprobs=[], finish_reason="context" if text == "full" else "stop"
        )
        yield Delta(index=0, text=text[:1])
        yield Delta(index=0, text=text[1:], completion=completion)


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    parrot = Parrot()
    monkeypatch.setattr(model, "_load", lambda args: parrot)
    monkeypatch.setattr(model, "_load_language_model", lambda args: parrot)
    return parrot


def test_generate_prints_the_text(parrot: Parrot, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "m", "--prompt", "hi", "--max-tokens", "3", "--stop", "x", "--stop", "y"]) == 0
    assert capsys.readouterr().out == "<hi>\n"
    assert parrot.options == {"raw": False, "max_tokens": 3, "stop": ["x", "y"]}


def test_generate_json_has_the_four_fields(parrot: Parrot, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["generate", "m", "--prompt", "你", "--temperature", "0", "--top-k", "0", "--raw", "--json"])
        == 0
    )
    assert json.loads(capfd.readouterr().out) == [
        {"text": "<你>", "tokens": [1, 2], "logprobs": [-0.5, 0.0], "finish_reason": "stop"}
    ]
    assert parrot.options == {"raw": True, "temperature": 0.0, "top_k": 0}


def test_prompts_are_read_from_jsonl(parrot: Parrot, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a"}\n\n"b"\n{"messages": [{"role": "user", "content": "c"}]}\n', encoding="utf-8"
    )
    assert main(["generate", "m", "--prompts", str(path)]) == 0
    assert parrot.asked == ["a", "b", [{"role": "user", "content": "c"}]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", ": is empty"),
        (b'"a"\n{"x": 1}\n', ':2: wants {"prompt": text}'),
        (b'"a"\n{"prompt": 3}\n', ":2: wants"),
        (b"7\n", ":1: wants"),
        (b'"a"\n{nope\n', ":2: is not JSON"),
        (b'"a"\n"\xff"\n', ":2: is not UTF-8"),
    ],
)
def test_a_wrong_prompts_file_names_the_line(
    raw: bytes, message: str, parrot: Parrot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(raw)
    assert main(["generate", "m", "--prompts", str(path)]) == 2
    assert f"p.jsonl{message}" in capsys.readouterr().err


def talk(parrot: Parrot, text: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    chat.talk(parrot, **options)  # pyrefly: ignore


def test_chat_keeps_the_conversation(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(parrot, "one\n\ntwo\n", monkeypatch, system="be brief", temperature=0.0)
    assert capsys.readouterr().out == "one\ntwo\n"
    assert [[m["content"] for m in asked] for asked in parrot.asked] == [
        ["be brief", "one"],
        ["be brief", "one", "one", "two"],
    ]
    assert parrot.options == {"temperature": 0.0}


def test_chat_resets_and_exits(parrot: Parrot, monkeypatch: pytest.MonkeyPatch) -> None:
    talk(parrot, "one\n/reset\n/what\ntwo\n/exit\nthree\n", monkeypatch)
    assert [[m["content"] for m in asked] for asked in parrot.asked] == [["one"], ["two"]]


def test_chat_says_when_the_context_is_full(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(parrot, "full\n", monkeypatch)
    assert "the context is full; /reset starts anew" in capsys.readouterr().err


def test_a_refused_line_over_a_pipe_is_an_error(parrot: Parrot, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="longer than the context"):
        talk(parrot, "long\n", monkeypatch)


def test_a_refused_line_of_a_person_leaves_the_conversation(
    parrot: Parrot, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [{"role": "user", "content": "x"}]
    assert chat.answer(parrot, before, "long", interactive=True) == before  # pyrefly: ignore
    assert "/reset starts a new conversation" in capsys.readouterr().err
