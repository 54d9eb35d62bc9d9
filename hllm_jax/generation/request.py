"""What is asked of a model and what comes back: `Request`, `Delta`, `Completion`. No jax here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
        text: what was said; without the stop token, and cut before a stop string.
        tokens: every sampled token, in order, including the stop token that ended it, where one did, and
            the tokens that spelled a stop string.
        logprobs: one per token: the log-probability under the model's own distribution, i.e. the
            log-softmax of the raw logits, before penalty, temperature and truncation. It is what `score`
            gives for the same tokens.
        finish_reason: "stop" (a stop token or stop string), "length" (`max_tokens` reached) or "context"
            (the model's `max_length` reached).
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What a stream adds to one completion.

    Attributes:
        index: which completion, in the order in which `generate` would return them.
        text: whole characters that follow the text before; never part of a stop string.
        completion: the whole result, with the last delta of this index; None before.
    """

    index: int
    text: str
    completion: Completion | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits; the fields apply in this order.

    Attributes:
        repetition_penalty: tokens of the prompt and of the completion so far become less likely for values
            above 1 (Keskar et al. 2019, arXiv:1909.05858, section 4.1): positive logits are divided by it,
            negative ones multiplied. 1 is off.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens (all that tie with the k-th); 0 or None is off.
        top_p: of these, keep the fewest most probable tokens whose mass reaches p; 1 is off.
        min_p: of these, keep tokens at least min_p times as probable as the best one; 0 is off.

    Raises:
        ValueError: a value outside its range, all wrong ones at once.
    """

    temperature: float = 1.0
    top_k: int | None = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        top_k = 0 if self.top_k is None else self.top_k
        found = [
            _range("temperature", self.temperature, 0.0, math.inf, "a finite number, 0 for greedy"),
            _range("top_p", self.top_p, 0.0, 1.0, "between 0 and 1, 1 for no truncation"),
            _range("min_p", self.min_p, 0.0, 1.0, "between 0 and 1, 0 for no truncation"),
            _range("repetition_penalty", self.repetition_penalty, 0.0, math.inf, "above 0, 1 for none"),
        ]
        if _number(self.repetition_penalty) and self.repetition_penalty == 0:
            found.append("repetition_penalty is 0, must be above 0, 1 for none")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 0 <= top_k < 2**31:
            found.append(f"top_k is {self.top_k!r}, must be a whole number of tokens, 0 or None for all")
        _refuse(found)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and what to do with it.

    Attributes:
        tokens: the prompt, at least one id.
        max_tokens: at most this many tokens are sampled, a stop token included.
        sampling: how tokens are chosen.
        n: how many completions; they share one prefill.
        seed, row: the random numbers of sample s come from (seed, row, s, position) and from nothing else,
            so that a completion does not depend on what else is in the batch.
        stop: strings that end a completion when they appear in its text.

    Raises:
        ValueError: a value outside its range, all wrong ones at once.
    """

    tokens: tuple[int, ...]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    seed: int = 0
    row: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        found = [
            _whole("max_tokens", self.max_tokens, 1),
            _whole("n", self.n, 1),
            _whole("seed", self.seed, 0),
            _whole("row", self.row, 0),
        ]
        if not self.tokens:
            found.append(
                "the prompt has no tokens: give some text, or a model whose tokenizer has a bos token"
            )
        if any(not isinstance(text, str) or not text for text in self.stop):
            found.append(f"stop is {self.stop!r}, must hold non-empty strings")
        _refuse(found)


def check_prompt(tokens: tuple[int, ...] | list[int], vocab_size: int, max_length: int) -> None:
    """Refuse ids outside the vocabulary and prompts beyond the context: JAX would clamp both silently.

    Raises:
        ValueError: says which.
    """
    wrong = [t for t in tokens if not 0 <= t < vocab_size]
    if wrong:
        raise ValueError(f"token {wrong[0]} is outside the vocabulary: ids run from 0 to {vocab_size - 1}")
    if len(tokens) > max_length:
        raise ValueError(
            f"the prompt has {len(tokens)} tokens, the model's context max_length is {max_length}: shorten it"
        )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(name: str, value: float, low: float, high: float, right: str) -> str | None:
    if _number(value) and low <= value <= high and math.isfinite(value):
        return None
    return f"{name} is {value!r}, must be {right}"


def _whole(name: str, value: int, low: int) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**32:
        return None
    return f"{name} is {value!r}, must be a whole number from {low} to 2**32 - 1"


def _refuse(found: list[str | None]) -> None:
    messages = [message for message in found if message]
    if messages:
        raise ValueError("; ".join(messages))
