"""Scores by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hllm_jax.data.task import TaskDataConfig
from hllm_jax.evals.scores import (
    answer_f1,
    class_scores,
    confusion,
    entities,
    exact_match,
    has_entities,
    span_scores,
)
from hllm_jax.evals.tasks import entity_f1, score


def test_two_classes() -> None:
    """Right 1 1 1 0 0, said 1 1 0 1 0: of class 1 two hits, one wrong, one missed: F1 = 4/6."""
    counts = confusion(np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0]), 2)
    assert counts.tolist() == [[1, 1], [1, 2]]
    assert class_scores(counts) == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3})


def test_several_classes_are_averaged_over_those_that_occur() -> None:
    counts = confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), 4)
    # F1: class 0: 2·1/(1+2) = 2/3; class 1: 2·1/(3+1) = 1/2; class 2: 0; class 3 never occurs.
    assert class_scores(counts) == pytest.approx({"accuracy": 0.5, "f1": (2 / 3 + 1 / 2 + 0) / 3})


def test_entities_of_tags() -> None:
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-PER", "O", "I-ORG", "I-ORG"]
    assert entities(tags) == {("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4), ("PER", 5, 5), ("ORG", 7, 8)}
    assert has_entities(["O", "B-PER", "I-PER"])
    assert not has_entities(["noun", "verb"])


def test_entity_f1_wants_type_and_both_ends() -> None:
    right = [["B-PER", "I-PER", "O"], ["O", "B-LOC", "O"]]
    said = [["B-PER", "O", "O"], ["O", "B-LOC", "B-PER"]]
    assert entity_f1(right, said) == pytest.approx(2 * 1 / (2 + 3))


def test_answers_as_squad_compares_them() -> None:
    assert exact_match("The Cat!", ["a cat"]) == 1
    assert exact_match("cats", ["cat", "Cats"]) == 1
    assert exact_match("", []) == exact_match("the", [""]) == 1
    assert exact_match("something", []) == 0
    assert answer_f1("the black cat sat", ["a black cat"]) == pytest.approx(2 * 2 / (2 + 3))
    assert answer_f1("", ["cat"]) == 0
    assert answer_f1("在北京市", ["北京"]) == pytest.approx(2 * 2 / (2 + 4))
    assert exact_match("北京。", ["北京"]) == 1


def test_stretches() -> None:
    right = np.array([[2, 5], [0, 0], [7, 7]])
    said = np.array([[4, 7], [0, 0], [8, 9]])
    # Two of four and four positions are shared: 2·2/8; the same; nothing shared.
    assert span_scores(right, said) == pytest.approx({"exact": 1 / 3, "f1": (0.5 + 1 + 0) / 3})


def test_only_what_has_weight_is_scored() -> None:
    task = TaskDataConfig(kind="tokens", labels=("O", "B-X", "I-X"))
    found = {
        "said": np.array([[1, 2, 0, 0], [2, 2, 2, 2]]),
        "right": np.array([[1, 2, 0, 1], [0, 0, 0, 0]]),
        "weights": np.array([[1, 1, 1, 0], [0, 0, 0, 0]], np.float32),
    }
    assert score(found, task) == {"accuracy": 1.0, "f1": 1.0, "entity_f1": 1.0, "examples": 1.0}
