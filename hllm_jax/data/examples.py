"""Examples of a task: records with an answer that a head on an encoder learns to give.

- `{"text": "…", "label": "…"}`, with a second text as `pair`: which class
- `{"tokens": ["…", …], "labels": ["…", …]}`: a class for every word
- `{"question": "…", "context": "…", "answers": …}`: the stretch of the context that answers the question;
  `answers` as SQuAD has them, `{"text": ["…"], "answer_start": [3]}`, or as a list of
  `{"text": "…", "answer_start": 3}`; empty where the context has no answer
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

TaskKind = Literal["sequence", "tokens", "span"]

FORMS = {
    "sequence": '{"text", "label"} or {"text", "pair", "label"}',
    "tokens": '{"tokens", "labels"}',
    "span": '{"question", "context", "answers"}',
}


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One example of one of three kinds.

    Attributes:
        kind: of the task.
        texts: one text or two (question and context); of tagged words, the words.
        labels: the class; or of every word; of a question none.
        answer: (text, first character in the context) of the first answer; None if there is none.
        answers: the texts of all answers.
    """

    kind: TaskKind
    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    answer: tuple[str, int] | None = None
    answers: tuple[str, ...] = ()


def parse_example(value: Mapping[str, Any], where: str) -> Example | None:
    """Recognise an example by its keys; None if it is none.

    Raises:
        DataError: it has the keys of one, and something else in them.
    """
    if {"question", "context", "answers"} <= value.keys():
        return parse_question(value, where)
    if {"tokens", "labels"} <= value.keys():
        words, labels = value["tokens"], value["labels"]
        if not (isinstance(words, list) and isinstance(labels, list) and all(map(is_text, words))):
            raise DataError("tokens is a list of words, labels a list of as many labels", where)
        if len(words) != len(labels):
            raise DataError(f"{len(words)} tokens have {len(labels)} labels; every word has one", where)
        return Example("tokens", tuple(words), tuple(label_of(each, where) for each in labels))
    if {"text", "label"} <= value.keys():
        texts = [value["text"]] + ([value["pair"]] if value.get("pair") is not None else [])
        if not all(map(is_text, texts)):
            raise DataError("text and pair are strings", where)
        return Example("sequence", tuple(texts), (label_of(value["label"], where),))
    return None


def parse_question(value: Mapping[str, Any], where: str) -> Example:
    """A question with its context; the answers have to stand in it where they say."""
    question, context, answers = (value[name] for name in ("question", "context", "answers"))
    if not (is_text(question) and is_text(context)):
        raise DataError("question and context are strings", where)
    if isinstance(answers, dict) and {"text", "answer_start"} <= answers.keys():
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(answers["text"], answers["answer_start"], strict=False)
        ]
    if not isinstance(answers, list):
        raise DataError('answers is {"text": […], "answer_start": […]}, or a list of such pairs', where)
    for answer in answers:
        keys = answer if isinstance(answer, dict) else {}
        text, start = keys.get("text"), keys.get("answer_start")
        if not (isinstance(text, str) and isinstance(start, int) and not isinstance(start, bool)):
            raise DataError('an answer has a "text", and "answer_start", its first character', where)
        if not text or context[max(start, 0) : start + len(text)] != text:
            found = context[max(start, 0) : max(start, 0) + len(text)]
            message = f"the answer {text!r} is not in the context at character {start}: there is {found!r}"
            raise DataError(message, where)
    first = (answers[0]["text"], answers[0]["answer_start"]) if answers else None
    return Example("span", (question, context), (), first, tuple(answer["text"] for answer in answers))


def label_of(value: object, where: str) -> str:
    """A label as text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"a label is a text or a whole number, not {value!r}", where)
    return str(value)


def is_text(value: object) -> bool:
    """Whether this is a string."""
    return isinstance(value, str)


def in_order(labels: set[str]) -> tuple[str, ...]:
    """Labels as they are numbered: by value if all are whole numbers, else as text."""
    if all(label.lstrip("-").isdecimal() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))
