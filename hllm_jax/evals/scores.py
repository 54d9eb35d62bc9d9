"""Scores of answers: accuracy, F1 of classes, of entities and of stretches of text, exact matches."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
HAN = re.compile(r"[\u3400-\u9fff]")
# English punctuation is left out ("don't" is one word), Chinese divides.
DIVIDES = "，。、；：？！“”‘’（）《》【】「」『』…—·"
PUNCTUATION = str.maketrans(DIVIDES, " " * len(DIVIDES), string.punctuation)


def confusion(right: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: how often the class of the row was said to be that of the column."""
    flat = np.asarray(right, np.int64) * classes + np.asarray(said, np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def class_scores(counts: np.ndarray) -> dict[str, float]:
    """`accuracy` and `f1`, from a confusion matrix.

    F1 of a class is 2·tp / (2·tp + fp + fn). With two classes `f1` is that of the second one (as GLUE counts
    paraphrases), else the mean over the classes that occur or are said (macro F1).
    """
    total, hits = counts.sum(), np.diag(counts)
    occurring = counts.sum(axis=0) + counts.sum(axis=1)
    f1 = np.divide(2 * hits, occurring, out=np.zeros(len(hits)), where=occurring > 0)
    chosen = f1[1:] if len(f1) == 2 else f1[occurring > 0]
    return {
        "accuracy": float(hits.sum() / total) if total else 0.0,
        "f1": float(chosen.mean()) if len(chosen) else 0.0,
    }


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities (type, first word, last word) that tags like `B-PER`, `I-PER`, `O` say.

    An `I-` that follows nothing of its type begins an entity, as in CoNLL's own scorer.
    """
    found: set[tuple[str, int, int]] = set()
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        goes_on = prefix == "I" and own == kind
        if kind and not goes_on:
            found.add((kind, begin, place - 1))
            kind = ""
        if prefix in ("B", "I") and own and not goes_on:
            begin, kind = place, own
    return found


def has_entities(labels: Iterable[str]) -> bool:
    """Whether labels are such tags."""
    names = list(labels)
    return "O" in names and all(name == "O" or name[:2] in ("B-", "I-") for name in names)


def f1_of(right: int, said: int, both: int) -> float:
    """Harmonic mean of precision and recall, from the sizes of two sets and of what they share."""
    return 2 * both / (right + said) if right + said else 1.0


def normal_answer(text: str) -> list[str]:
    """What counts of an answer: lower case, without punctuation and English articles, word by word; every
    Chinese character is a word (SQuAD's and CMRC's own scorers)."""
    plain = text.lower().translate(PUNCTUATION)
    return HAN.sub(r" \g<0> ", ARTICLES.sub(" ", plain)).split()


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of the right ones (no answer: if there is none), else 0."""
    return float(any(normal_answer(said) == normal_answer(right) for right in answers or ("",)))


def answer_f1(said: str, answers: Sequence[str]) -> float:
    """The best F1 of the words of an answer against those of a right one; 0 or 1 where either has none."""

    def score(right: str) -> float:
        ours, theirs = normal_answer(said), normal_answer(right)
        if not ours or not theirs:
            return float(ours == theirs)
        return f1_of(len(theirs), len(ours), (Counter(ours) & Counter(theirs)).total())

    return max(score(right) for right in answers or ("",))


def span_scores(right: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """`exact` and `f1` (overlap of positions) of stretches, int [N, 2] of (first, last) each."""
    exact = (right == said).all(axis=1)
    shared = np.minimum(right[:, 1], said[:, 1]) - np.maximum(right[:, 0], said[:, 0]) + 1
    lengths = (right[:, 1] - right[:, 0] + 1) + (said[:, 1] - said[:, 0] + 1)
    f1 = 2 * np.maximum(shared, 0) / lengths
    count = max(len(right), 1)
    return {"exact": float(exact.sum() / count), "f1": float(f1.sum() / count)}
