"""Preferences: records that say which of several answers to one prompt is better.

- `{"prompt": "…", "chosen": "…", "rejected": "…"}`; each of the three may be a list of messages instead, and
  `"margin": 1.0` says how much better the chosen answer is
- `{"chosen": [messages], "rejected": [messages]}`: what both begin with is the prompt
- `{"prompt": "…", "answers": ["…", …], "scores": [4, 1, …]}`, or `"ranks"` (0 for the best): every two
  answers that are not alike are a pair, and together they count as one (Ouyang et al. 2022, section 3.5)

and, where single answers are asked for (KTO), `{"prompt": "…", "completion": "…", "label": true}`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

Message = dict[str, Any]
Messages = tuple[Message, ...]

FORM = (
    '{"prompt", "chosen", "rejected"}, {"chosen": [messages], "rejected": [messages]} with a common '
    'beginning, or {"prompt", "answers", "scores"}'
)


class Comparison(NamedTuple):
    """Two answers to a prompt.

    Attributes:
        chosen, rejected: the messages after the prompt; the last is the assistant's. Of a single answer,
            which is good or bad, the other side is empty.
        margin: how much better the first is.
    """

    chosen: Messages
    rejected: Messages
    margin: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Preference:
    """Comparisons of answers to one prompt.

    Attributes:
        prompt: at least one message.
        comparisons: at least one; together they count as one pair.
    """

    prompt: Messages
    comparisons: tuple[Comparison, ...]

    @property
    def texts(self) -> list[str]:
        """The contents of all messages, each answer once for each comparison it is in."""
        answers = [side for each in self.comparisons for side in (each.chosen, each.rejected)]
        return [message["content"] or "" for side in (self.prompt, *answers) for message in side]


def parse_preference(value: object, where: str) -> Preference:
    """Recognise a preference.

    Raises:
        DataError: it is none; or there is no common prompt, an answer is empty, or both sides are the same.
    """
    from hllm_jax.data.records import keys_of, shown

    ranked = isinstance(value, dict) and "answers" in value
    needed = {"prompt", "answers"} if ranked else {"chosen", "rejected"}
    if not isinstance(value, dict) or not needed <= value.keys():
        seen = f"keys {keys_of(value)}" if isinstance(value, dict) else shown(value)
        raise DataError(f"a preference is {FORM}; seen: {seen}", where)
    if ranked:
        return parse_ranking(value, where)
    if value.get("prompt") is not None:
        prompt = prompt_of(value["prompt"], where)
        chosen, rejected = (answer_of(value[name], name, prompt, where) for name in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = common_prompt(value, where)
    check_sides(chosen, rejected, where)
    return Preference(prompt, (Comparison(chosen, rejected, number_of(value.get("margin", 0.0), where)),))


def parse_rated(value: object, where: str) -> Preference:
    """A single answer that is good (`label` true) or bad; errors as `parse_preference`."""
    from hllm_jax.data.records import keys_of, shown

    if not isinstance(value, dict) or not {"prompt", "completion", "label"} <= value.keys():
        seen = f"keys {keys_of(value)}" if isinstance(value, dict) else shown(value)
        raise DataError(f'a single answer is {{"prompt", "completion", "label"}}; seen: {seen}', where)
    if not isinstance(value["label"], bool):
        raise DataError(f"label is true or false, not {shown(value['label'])}", where)
    prompt = prompt_of(value["prompt"], where)
    answer = answer_of(value["completion"], "completion", prompt, where)
    return Preference(prompt, (Comparison(answer, ()) if value["label"] else Comparison((), answer),))


def parse_ranking(value: Mapping[str, Any], where: str) -> Preference:
    """`{"prompt", "answers", "scores" or "ranks"}`."""
    given = [name for name in ("scores", "ranks") if name in value]
    if len(given) != 1:
        raise DataError('"answers" come with "scores" (higher is better) or "ranks" (0 is the best)', where)
    prompt = prompt_of(value["prompt"], where)
    answers, numbers = value["answers"], value[given[0]]
    if not (isinstance(answers, list) and isinstance(numbers, list) and len(answers) == len(numbers)):
        raise DataError(f"answers and {given[0]} are lists of the same length", where)
    sign = 1.0 if given[0] == "scores" else -1.0
    worth = [sign * number_of(number, where) for number in numbers]
    sides = [answer_of(answer, f"answer {i}", prompt, where) for i, answer in enumerate(answers)]
    pairs = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if worth[i] > worth[j]]
    if not pairs:
        raise DataError(f"no answer is better than another: all {given[0]} are alike", where)
    for i, j in pairs:
        check_sides(sides[i], sides[j], where)
    return Preference(prompt, tuple(Comparison(sides[i], sides[j]) for i, j in pairs))


def prompt_of(value: object, where: str) -> Messages:
    """A prompt as messages; a string is what the user says."""
    from hllm_jax.data.records import parse_messages

    said = [{"role": "user", "content": value}] if isinstance(value, str) else value
    messages = parse_messages(said, where)
    if not any((message["content"] or "").strip() for message in messages):
        raise DataError("the prompt is empty: both answers need one in common", where)
    return messages


def answer_of(value: object, name: str, prompt: Messages, where: str) -> Messages:
    """An answer as messages; one that repeats the prompt (whole conversations) is what comes after it."""
    from hllm_jax.data.records import parse_messages

    if isinstance(value, str):
        messages: Messages = ({"role": "assistant", "content": value},)
    else:
        messages = parse_messages(value, where)
        if messages[: len(prompt)] == prompt:
            messages = messages[len(prompt) :]
    return check_answer(messages, name, where)


def check_answer(messages: Messages, name: str, where: str) -> Messages:
    """Refuse what is no answer."""
    said = [message for message in messages if message["role"] == "assistant"]
    if not messages or not all((message["content"] or "").strip() for message in said):
        raise DataError(f"{name} is an empty answer", where)
    if messages[-1]["role"] != "assistant" or any(m["role"] not in ("assistant", "tool") for m in messages):
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"{name} is to be what the assistant says after the prompt, not {roles}", where)
    return messages


def common_prompt(value: Mapping[str, Any], where: str) -> tuple[Messages, Messages, Messages]:
    """(prompt, chosen, rejected) of two whole conversations: they part at a turn of the assistant."""
    from hllm_jax.data.records import parse_messages

    if isinstance(value["chosen"], str) or isinstance(value["rejected"], str):
        raise DataError('no common prompt: give "prompt" beside two texts', where)
    one, other = parse_messages(value["chosen"], where), parse_messages(value["rejected"], where)
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    if one == other:
        raise DataError("chosen and rejected are the same", where)
    while same and one[same - 1]["role"] == "assistant":  # an answer that only one of them continues
        same -= 1
    if same == 0:
        raise DataError("no common prompt: chosen and rejected differ from the first message on", where)
    chosen = check_answer(one[same:], "chosen", where)
    return one[:same], chosen, check_answer(other[same:], "rejected", where)


def check_sides(chosen: Messages, rejected: Messages, where: str) -> None:
    """Refuse a pair that says nothing."""
    if chosen == rejected:
        raise DataError("chosen and rejected are the same", where)


def number_of(value: object, where: str) -> float:
    """A margin, score or rank."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"margin, scores and ranks are finite numbers, not {value!r}", where)
    return float(value)
