"""Records as people write them, recognised by key and brought to three forms: a text, a conversation, a pair.

Accepted, one record each:

- `{"text": "…"}`                                                      a document
- `{"messages": [{"role": "user", "content": "…"}, …]}`                 a conversation
- `[{"role": "user", "content": "…"}, …]`                               the same as a bare JSON list
- `{"conversations": [{"from": "human", "value": "…"}, …]}`             ShareGPT, BELLE
- `{"instruction": "…", "input": "…", "output": "…"}`                   Alpaca (`system`, `history` optional)
- `{"source": "…", "target": "…"}` or `{"prompt": "…", "response": "…"}`  a pair: what comes in, what goes out

Further keys (`id`, `source`, …) are left alone; `tools` goes to the chat template.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from hllm_jax.data.errors import DataError
from hllm_jax.data.examples import FORMS as EXAMPLES
from hllm_jax.data.examples import parse_example
from hllm_jax.data.preferences import parse_preference, parse_rated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hllm_jax.data.examples import Example
    from hllm_jax.data.preferences import Preference
    from hllm_jax.data.tokenization import RecordTask

ACCEPTED = (
    'accepted are {"text"}, {"messages": [{"role", "content"}]}, a bare list of such messages, '
    '{"conversations": [{"from", "value"}]}, {"instruction", "input", "output"}, {"source", "target"} and '
    '{"prompt", "response"}; '
    "another key for the text is named by `field`"
)

ROLES = ("system", "user", "assistant", "tool")

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}

PAIRS = (("source", "target"), ("prompt", "response"))

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """The whole record that a prompt was made of.

    Attributes:
        record: with the keys of its file.
        is_text: the prompt is the beginning of a text.
    """

    record: dict[str, Any]
    is_text: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A document (`text`), a conversation (`messages`), a pair of texts (`pair`), an example of a task
    (`example`) or a preference (`preference`); exactly one is there. A prompt is a text or a conversation
    that was `asked`."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[Any, ...] | None = None
    pair: tuple[str, str] | None = None
    example: Example | None = None
    asked: Asked | None = None
    preference: Preference | None = None

    @property
    def parts(self) -> list[str]:
        """The text, the contents of the messages, or the texts of the pair, the example or the preference."""
        if self.example is not None:
            return list(self.example.texts)
        if self.preference is not None:
            return self.preference.texts
        if self.text is not None:
            return [self.text]
        if self.pair is not None:
            return list(self.pair)
        return [message["content"] or "" for message in self.messages or ()]

    @property
    def characters(self) -> int:
        """Length in characters, of the text or of all contents together."""
        return sum(map(len, self.parts))

    @property
    def plain_text(self) -> str:
        """The text, or the parts of another record joined by newlines: what a tokenizer trains on."""
        return "\n".join(self.parts)

    @property
    def conversation(self) -> Record:
        """A pair as a conversation of two turns; any other record as it is."""
        if self.pair is None:
            return self
        asked, answered = self.pair
        turns = ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
        return Record(messages=turns)

    def content_hash(self) -> bytes:
        """16 bytes that two records share exactly when they say the same."""
        if self.text is not None:
            said = self.text
        elif self.pair is not None:
            said = json.dumps(self.pair, ensure_ascii=False)
        elif self.example is not None:
            said = json.dumps(dataclasses.astuple(self.example), ensure_ascii=False)
        elif self.preference is not None:
            said = json.dumps(dataclasses.astuple(self.preference), ensure_ascii=False, sort_keys=True)
        else:
            said = json.dumps([self.messages, self.tools], ensure_ascii=False, sort_keys=True)
        return _hash(said)

    def split_hash(self) -> bytes:
        """16 bytes that decide whether a record is held out: of the content, or of a preference those of
        its prompt, so that no answer to a held-out prompt is trained on."""
        if self.preference is None:
            return self.content_hash()
        return _hash(json.dumps(self.preference.prompt, ensure_ascii=False, sort_keys=True))


def _hash(said: str) -> bytes:
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def held_out(content_hash: bytes, share: float) -> bool:
    """Whether a record with this hash belongs to the held-out `share` (0 to 1).

    It depends on the content alone, so exact repeats fall on the same side, and a larger share holds out
    everything that a smaller one does.
    """
    return int.from_bytes(content_hash[:8], "big") < share * 2.0**64


def split_by(content_hash: bytes, share: float) -> Literal["train", "validation"]:
    """The split of a record with this hash: `validation` if it is held out at `share`."""
    return "validation" if held_out(content_hash, share) else "train"


def parse_record(
    value: object, where: str, field: str | None = None, task: RecordTask | None = None
) -> Record:
    """Recognise one decoded JSON value.

    Args:
        value: what the file holds.
        where: `file:line`, for errors.
        field: the key of the text where it is not `text`.
        task: the record is to be an example of this kind of task, or a preference.

    Raises:
        DataError: the value has none of the accepted forms (the message shows the keys seen), or one of its
            parts has the wrong type or role.
    """
    if task in ("preference", "text_preference"):
        return Record(preference=parse_preference(value, where))
    if task in ("rated", "text_rated"):
        return Record(preference=parse_rated(value, where))
    if task is not None:
        example = parse_example(value, where) if isinstance(value, dict) else None
        if example is None or example.kind != task:
            seen = f"keys {keys_of(value)}" if isinstance(value, dict) else shown(value)
            raise DataError(f"an example of this task is {EXAMPLES[task]}; seen: {seen}", where)
        return Record(example=example)
    if isinstance(value, list):
        return Record(messages=parse_messages(value, where))
    if not isinstance(value, dict):
        raise DataError(
            f"a record is a JSON object or a list of messages, not {shown(value)}; {ACCEPTED}", where
        )
    if field is not None:
        if field not in value:
            raise DataError(
                f"no key {field!r} (the `field` of this source); keys seen: {keys_of(value)}", where
            )
        return Record(text=expect_text(value[field], field, where))
    forms = [key for key in ("text", "messages", "conversations", "instruction") if key in value]
    # `source` alone is where a record comes from; only both keys make a pair.
    pairs = [names for names in PAIRS if names[0] in value and names[1] in value]
    if not forms and len(pairs) == 1:
        first, second = (expect_text(value[name], name, where) for name in pairs[0])
        return Record(pair=(first, second))
    if len(forms) != 1:
        problem = "ambiguous: " + " and ".join(forms) if forms else "no usable key"
        raise DataError(f"{problem}; keys seen: {keys_of(value)}; {ACCEPTED}", where)
    tools = parse_tools(value.get("tools"), where)
    match forms[0]:
        case "text":
            return Record(text=expect_text(value["text"], "text", where))
        case "messages":
            return Record(messages=parse_messages(value["messages"], where), tools=tools)
        case "conversations":
            return Record(messages=parse_sharegpt(value, where), tools=tools)
        case _:
            return Record(messages=parse_alpaca(value, where), tools=tools)


def parse_messages(value: object, where: str) -> tuple[Message, ...]:
    """Validate a list of `{"role", "content"}`; a TFDS sequence (a dict of lists) is understood too."""
    if isinstance(value, dict) and {"role", "content"} <= value.keys():
        value = [
            {"role": role, "content": content}
            for role, content in zip(value["role"], value["content"], strict=True)
        ]
    if not isinstance(value, list):
        raise DataError(f'messages is a list of {{"role", "content"}}, not {shown(value)}', where)
    messages: list[Message] = []
    for number, message in enumerate(value):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            seen = f"keys {keys_of(message)}" if isinstance(message, dict) else shown(message)
            raise DataError(f'message {number}: expected "role" and "content", found {seen}', where)
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise DataError(f"message {number}: unknown role {role!r}; roles are {', '.join(ROLES)}", where)
        if isinstance(content, list) and all(map(is_text_part, content)):
            message = message | {"content": "".join(part["text"] for part in content)}
        elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise DataError(f"message {number}: content is a string, not {shown(content)}", where)
        messages.append(message)
    return tuple(messages)


def is_text_part(part: object) -> bool:
    """Whether this is `{"type": "text", "text": …}`, as OpenAI's API writes contents."""
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def parse_sharegpt(value: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """`{"conversations": [{"from", "value"}, …]}`, with an optional `system` beside it."""
    turns = value["conversations"]
    if isinstance(turns, dict) and {"from", "value"} <= turns.keys():
        turns = [{"from": a, "value": b} for a, b in zip(turns["from"], turns["value"], strict=True)]
    if not isinstance(turns, list):
        raise DataError(f'conversations is a list of {{"from", "value"}}, not {shown(turns)}', where)
    messages = system_message(value, where)
    for number, turn in enumerate(turns):
        if isinstance(turn, dict) and "role" in turn and "content" in turn:
            messages += parse_messages([turn], where)
            continue
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            seen = f"keys {keys_of(turn)}" if isinstance(turn, dict) else shown(turn)
            raise DataError(f'turn {number}: expected "from" and "value", found {seen}', where)
        if turn["from"] not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise DataError(f"turn {number}: unknown role {turn['from']!r}; roles are {known}", where)
        content = expect_text(turn["value"], f"turn {number}: value", where)
        messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": content})
    return tuple(messages)


def parse_alpaca(value: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """`{"instruction", "input", "output"}`; `input` may be missing, `history` holds earlier pairs."""
    if "output" not in value:
        raise DataError(f'"instruction" without "output"; keys seen: {keys_of(value)}', where)
    messages = system_message(value, where)
    for pair in value.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"history is a list of [question, answer] pairs, found {shown(pair)}", where)
        messages.append({"role": "user", "content": expect_text(pair[0], "history", where)})
        messages.append({"role": "assistant", "content": expect_text(pair[1], "history", where)})
    asked = expect_text(value["instruction"], "instruction", where)
    context = expect_text(value.get("input") or "", "input", where)
    messages.append({"role": "user", "content": f"{asked}\n{context}" if context else asked})
    messages.append({"role": "assistant", "content": expect_text(value["output"], "output", where)})
    return tuple(messages)


def system_message(value: Mapping[str, Any], where: str) -> list[Message]:
    """The record's `system` text as a first message, if it has one."""
    system = value.get("system")
    return [{"role": "system", "content": expect_text(system, "system", where)}] if system else []


def parse_tools(value: object, where: str) -> tuple[Any, ...] | None:
    """The record's `tools`: a list of schemas, or that list as a JSON string."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"tools is a string that is no JSON ({error})", where) from None
    if not value:
        return None
    if not isinstance(value, list):
        raise DataError(f"tools is a list of tool schemas, not {shown(value)}", where)
    return tuple(value)


def expect_text(value: object, name: str, where: str) -> str:
    """`value` if it is a string."""
    if not isinstance(value, str):
        raise DataError(f"{name} is a string, not {shown(value)}", where)
    return value


def keys_of(value: Mapping[Any, Any]) -> str:
    """The keys of a record, for an error message."""
    return ", ".join(repr(key) for key in value) or "none"


def shown(value: object) -> str:
    """Type and start of a value, for an error message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"


def usable_for_chat(messages: Sequence[Message]) -> bool:
    """Whether a conversation has an answer to learn from."""
    return any(message["role"] == "assistant" for message in messages)
