"""Conversations and tools as people write them, checked and brought into one form for the templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hllm_jax.tokenizers.errors import MessageError

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check a conversation and bring it into the form that templates expect.

    Args:
        messages: mappings with `role` (system, user, assistant, tool) and `content` (a string, or a list of
            `{"type": "text", "text": …}` parts). An assistant message may carry `tool_calls`, each
            `{"function": {"name", "arguments"}}` or `{"name", "arguments"}` with the arguments as an object
            or as its JSON text; its content may then be missing. Further keys reach the template unchanged.

    Returns:
        New dicts: content is a string, arguments are objects.

    Raises:
        MessageError: naming the index of the message, the key, what was found and what is valid.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise MessageError(
            f'messages must be a list of {{"role", "content"}} objects, not {_shown(messages)}; '
            'a single question is [{"role": "user", "content": "…"}]'
        )
    if not messages:
        raise MessageError("the list of messages is empty: at least one message is needed")
    return [_message(i, message) for i, message in enumerate(messages)]


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Check tool definitions; bare functions are wrapped as `{"type": "function", "function": …}`.

    Raises:
        MessageError: naming the index of the tool and what is missing.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise MessageError(f"tools must be a list of function definitions, not {_shown(tools)}")
    checked: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise MessageError(
                f'tool {i} must be {{"type": "function", "function": {{"name", "description", '
                f'"parameters"}}}}, not {_shown(tool)}'
            )
        wrapped = tool if "function" in tool else {"type": "function", "function": dict(tool)}
        _json_text(f"tool {i}", wrapped)
        checked.append(dict(wrapped))
    return checked or None


def _message(i: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise MessageError(f'message {i} must be an object with "role" and "content", not {_shown(message)}')
    if "role" not in message:
        raise MessageError(f'message {i} has no "role" (its keys: {", ".join(map(str, message)) or "none"})')
    role = message["role"]
    if role not in ROLES:
        raise MessageError(f"message {i} has the unknown role {role!r}; valid roles are {', '.join(ROLES)}")
    result = dict(message)
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise MessageError(f"message {i} has tool_calls but the role {role!r}; only an assistant calls tools")
    if calls:
        if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
            raise MessageError(f"message {i}: tool_calls must be a list, not {_shown(calls)}")
        result["tool_calls"] = [
            _tool_call(f"message {i}, tool call {k}", call) for k, call in enumerate(calls)
        ]
    result["content"] = _content(i, message, bool(calls))
    return result


def _content(i: int, message: Mapping[str, Any], may_be_missing: bool) -> str:
    content = message.get("content")
    if content is None and may_be_missing:
        return ""
    if "content" not in message:
        raise MessageError(f'message {i} has no "content" (its keys: {", ".join(map(str, message))})')
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        for k, part in enumerate(content):
            if (
                not isinstance(part, Mapping)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                raise MessageError(
                    f'message {i}, content part {k} must be {{"type": "text", "text": "…"}}, '
                    f"not {_shown(part)}"
                )
        return "".join(part["text"] for part in content)
    raise MessageError(
        f"message {i}: content must be a string or a list of text parts, not {_shown(content)}"
        + ("; None is only possible beside tool_calls" if content is None else "")
    )


def _tool_call(where: str, call: object) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if (
        not isinstance(call, Mapping)
        or not isinstance(function, Mapping)
        or not isinstance(function.get("name"), str)
    ):
        raise MessageError(f'{where} must be {{"function": {{"name", "arguments"}}}}, not {_shown(call)}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise MessageError(
                f"{where}: the arguments are not valid JSON ({error}): {_shown(arguments)}"
            ) from None
    if not isinstance(arguments, Mapping):
        raise MessageError(f"{where}: the arguments must be an object, not {_shown(arguments)}")
    _json_text(where, arguments)
    outer = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    return {"type": "function", **outer, "function": {**function, "arguments": dict(arguments)}}


def _json_text(where: str, value: object) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise MessageError(f"{where} cannot be written as JSON: {error}") from None


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '…'}"
