"""A conversation in the terminal, or over a pipe: one line in, one streamed answer out."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hllm_jax.generation.language_model import LanguageModel

HELP = "/reset starts a new conversation, /exit leaves, Ctrl-C stops an answer"


def talk(model: LanguageModel, system: str | None = None, **sampling: Any) -> None:
    """Read lines from standard input and answer each with the whole conversation so far in view.

    Args:
        model: what `hllm_jax.load` returns.
        system: a system message that every conversation starts with.
        sampling: passed on to `model.stream`.
    """
    interactive = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` its line editing and history)
        print(HELP, file=sys.stderr)
    start = [{"role": "system", "content": system}] if system else []
    messages: list[dict[str, str]] = list(start)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(start)
            print("(a new conversation)", file=sys.stderr)
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line:
            messages = answer(model, messages, line, interactive=interactive, **sampling)


def answer(
    model: LanguageModel, messages: list[dict[str, str]], line: str, *, interactive: bool, **sampling: Any
) -> list[dict[str, str]]:
    """Stream the answer to `line` and return the conversation with both added.

    A line that does not fit the context any more is refused and leaves the conversation as it was.
    """
    asked = [*messages, {"role": "user", "content": line}]
    said = ""
    reason = ""
    try:
        for delta in model.stream(asked, **sampling):
            said += delta.text
            print(delta.text, end="", flush=True)
            if delta.completion is not None:
                reason = delta.completion.finish_reason
    except KeyboardInterrupt:
        if not interactive:
            raise
    except ValueError as error:
        if not interactive or said:
            raise
        print(f"{error} (/reset starts a new conversation)", file=sys.stderr)
        return messages
    print(flush=True)
    if reason in ("context", "length"):
        why = "the context is full; /reset starts anew" if reason == "context" else "--max-tokens reached"
        print(f"({why})", file=sys.stderr)
    return [*asked, {"role": "assistant", "content": said}]
