"""Prompts: what a record asks, in whichever form people wrote it, and how it is put to a model.

- `{"prompt": "…"}` or `{"prompt": [{"role", "content"}, …]}`, `{"question": "…"}`: a question
- `{"source": "…", "target": "…"}`: its first part
- `{"messages": …}` and its kin (`data.records`): the conversation up to its last answer
- `{"instruction": "…", "input": "…"}`: Alpaca, with or without an output
- `{"text": "…"}`: the beginning of a text, to be continued

All other keys (`answer`, `response`, …) stay in the record, where reward functions find them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from hllm_jax.config import Invalid, config
from hllm_jax.data.errors import DataError
from hllm_jax.data.records import (
    Asked,
    Record,
    expect_text,
    keys_of,
    parse_messages,
    parse_record,
    parse_tools,
    shown,
)

if TYPE_CHECKING:
    from hllm_jax.data.transforms.piece import Transform
    from hllm_jax.tokenizers.tokenizer import Tokenizer

QUESTIONS = ("prompt", "question", "source")
ACCEPTED = (
    'a prompt is {"prompt": text or messages}, {"question"}, {"source", "target"}, {"messages"}, '
    '{"conversations"}, {"instruction"} or, with prompts.form: text, {"text"}; '
    "another key for a text is named by `field`"
)


@config
class PromptConfig:
    """The `prompts:` section: how records are put to a model that is to answer them.

    Attributes:
        form: `chat`: a conversation, rendered with the chat template up to where the answer begins. `text`:
            the text itself, which a base model goes on with.
        beginning: of a `{"text"}` record, so many tokens are the prompt, begin of document not counted.
        system: the system message of conversations that have none.
    """

    form: Literal["chat", "text"] = "chat"
    beginning: int = 8
    system: str | None = None

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (self.beginning < 1, "beginning", f"{self.beginning}: at least 1 token"),
                (
                    self.system is not None and self.form == "text",
                    "system",
                    "is not used: a text has no system message; remove it, or set form: chat",
                ),
            ]
        )

    @property
    def described(self) -> str:
        """The section in a line."""
        return str(self)

    def transform(
        self, tokenizer: Tokenizer, sequence_length: int, decoder_start: int | None = None
    ) -> Transform:
        """How prompts become rows of `sequence_length` tokens; see `ObjectiveConfig.transform`."""
        from hllm_jax.data.transforms.prompts import PromptRows

        del decoder_start
        return PromptRows(self, tokenizer.pad_id, sequence_length)


def parse_prompt(value: object, where: str, prompts: PromptConfig, field: str | None = None) -> Record:
    """What a decoded JSON value asks: a record with `messages` or `text`, and the whole of it in `asked`.

    Args:
        value: what the file holds.
        where: `file:line`, for errors.
        prompts: the section.
        field: the key of the text where it is none of the usual ones.

    Raises:
        DataError: nothing is asked, the question is empty, or `form` does not suit it.
    """
    if not isinstance(value, (dict, list)):
        raise DataError(f"a record is a JSON object or a list of messages, not {shown(value)}", where)
    record = dict(value) if isinstance(value, dict) else {"messages": value}
    asked = question_of(record, where, field)
    if asked.text is not None:
        if not asked.text.strip():
            raise DataError("the prompt is empty", where)
        is_text = field is not None or "text" in record
        if prompts.form == "text":
            return dataclasses.replace(asked, asked=Asked(record, is_text))
        if is_text and field is None:
            raise DataError(
                'a {"text"} asks nothing; set prompts.form: text to have its beginning continued', where
            )
        asked = Record(messages=({"role": "user", "content": asked.text},))
    elif prompts.form == "text":
        raise DataError("a conversation needs the chat template: set prompts.form: chat", where)
    messages = asked.messages or ()
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not any(message["role"] == "user" for message in messages):
        raise DataError("nothing is asked: no message of a user stands before the answer", where)
    if not (messages[-1]["content"] or "").strip():
        raise DataError("the prompt is empty: its last message has no content", where)
    if prompts.system is not None and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": prompts.system}, *messages)
    return Record(messages=messages, tools=asked.tools, asked=Asked(record))


def question_of(record: dict[str, Any], where: str, field: str | None) -> Record:
    """The question of a record as a text or a conversation, an answer at its end included."""
    if field is not None:
        return parse_record(record, where, field)
    forms = [
        name
        for name in ("prompt", "question", "messages", "conversations", "instruction", "text")
        if name in record
    ]
    if not forms and "target" in record and "source" in record:
        forms = ["source"]
    if len(forms) != 1:
        problem = "ambiguous: " + " and ".join(forms) if forms else "nothing is asked"
        raise DataError(f"{problem}; keys seen: {keys_of(record)}; {ACCEPTED}", where)
    name, tools = forms[0], parse_tools(record.get("tools"), where)
    asked = record[name]
    if name in QUESTIONS:
        if isinstance(asked, (list, dict)):
            return Record(messages=parse_messages(asked, where), tools=tools)
        return Record(text=expect_text(asked, name, where))
    if name == "text":
        return Record(text=expect_text(asked, name, where))
    return parse_record({"output": "", **record} if name == "instruction" else record, where)


def tokenize_prompt(record: Record, tokenizer: Tokenizer, prompts: PromptConfig) -> list[int]:
    """The tokens that stand before the answer, at least one.

    Raises:
        MessageError: the template refuses the conversation.
    """
    if record.messages is not None:
        return tokenizer.render(list(record.messages), tools=record.tools, add_generation_prompt=True)[0]
    assert record.text is not None
    ids = tokenizer.encode_prompt(record.text)
    if record.asked is None or not record.asked.is_text:
        return ids
    return ids[: prompts.beginning + int(tokenizer.add_bos and tokenizer.bos_id is not None)]
