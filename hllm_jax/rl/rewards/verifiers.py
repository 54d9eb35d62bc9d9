"""Verifiers that come with the package: an answer is right, wrong, or right in part.

Each takes (prompt, completion, record) and what `reward.options` says. A record without what is to be
compared with is an error, not a wrong answer. Nothing that a model wrote is ever executed or evaluated.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from typing import Any

#: Name in `reward.path` -> where it is.
BUILT_IN = {
    "exact": "hllm_jax.rl.rewards.verifiers:exact",
    "number": "hllm_jax.rl.rewards.verifiers:number",
    "pattern": "hllm_jax.rl.rewards.verifiers:pattern",
    "poem": "hllm_jax.rl.rewards.poem:poem",
}
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


def exact(prompt: str, completion: str, record: dict[str, Any], *, answer: str = "answer") -> bool:
    """Whether the completion says exactly what the record does.

    Case, blanks at the ends and how many of them are between words, and the width of characters do not count.

    Args:
        answer: key of the right answer, a text or a list of texts of which each is right.
    """
    del prompt
    return plain(completion) in {plain(str(each)) for each in wanted(record, answer)}


def number(
    prompt: str, completion: str, record: dict[str, Any], *, answer: str = "answer", tolerance: float = 0.0
) -> bool:
    """Whether the last number of the completion is that of the record (its last number, where it is a text).

    Numbers are decimals, with commas between thousands or without: `1,234.50` is 1234.5.

    Args:
        answer: key of the right answer, a number or a text that ends with it (GSM8K: `#### 18`).
        tolerance: how far off is still right.
    """
    del prompt
    said = last_number(completion)
    right = [last_number(str(each)) for each in wanted(record, answer)]
    if None in right:
        raise ValueError(f"record[{answer!r}] has no number: {record[answer]!r}")
    return said is not None and any(
        abs(said - each) <= Decimal(str(tolerance)) for each in right if each is not None
    )


def pattern(
    prompt: str, completion: str, record: dict[str, Any], *, pattern: str | None = None, key: str = "pattern"
) -> bool:
    """Whether a regular expression matches the whole completion, but for blanks at its ends.

    Args:
        pattern: the expression; None: that of the record.
        key: of the record's expression.
    """
    del prompt
    expression = pattern if pattern is not None else str(wanted(record, key)[0])
    return re.fullmatch(expression, completion.strip(), re.DOTALL) is not None


def wanted(record: dict[str, Any], key: str) -> list[Any]:
    """The right answers of a record.

    Raises:
        ValueError: it has none.
    """
    if record.get(key) in (None, "", []):
        raise ValueError(f"the record has no {key!r}; its keys are {', '.join(map(repr, record)) or 'none'}")
    found = record[key]
    return found if isinstance(found, list) else [found]


def plain(text: str) -> str:
    """A text without what does not count: see `exact`."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def last_number(text: str) -> Decimal | None:
    """The last number in a text; None if there is none."""
    found = NUMBER.findall(unicodedata.normalize("NFKC", text))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None
