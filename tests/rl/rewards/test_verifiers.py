"""Verifiers: what counts as the right answer, and that a record without one is an error."""

from __future__ import annotations

import pytest

from hllm_jax.rl.rewards.verifiers import exact, number, pattern


@pytest.mark.parametrize(
    ("said", "right", "found"),
    [
        (" Paris\n", "paris", True),
        ("Ｐaris", "Paris", True),
        ("new  york", "New York", True),
        ("Paris.", "Paris", False),
        ("b", ["a", "b"], True),
        ("c", ["a", "b"], False),
        ("", "Paris", False),
    ],
)
def test_exact(said, right, found):
    assert exact("", said, {"answer": right}) is found


@pytest.mark.parametrize(
    ("said", "right", "found"),
    [
        ("so it is 18.", "#### 18", True),
        ("1,234.50", 1234.5, True),
        ("-3", -3, True),
        ("3", -3, False),
        ("0.1 + 0.2 = 0.3", 0.3, True),
        ("18 apples, 2 left", 18, False),
        ("答案是４２", 42, True),
        ("none", 18, False),
        ("__import__('os')", 18, False),
    ],
)
def test_number(said, right, found):
    assert number("", said, {"answer": right}) is found


def test_number_with_a_tolerance():
    assert number("", "3.14", {"answer": 3.15}, tolerance=0.01)
    assert not number("", "3.13", {"answer": 3.15}, tolerance=0.01)


def test_pattern():
    assert pattern("", " yes ", {}, pattern="yes|no")
    assert not pattern("", "yes!", {}, pattern="yes|no")
    assert pattern("", "ab", {"pattern": "a."})


@pytest.mark.parametrize("verify", [exact, number, pattern])
def test_a_record_without_an_answer_is_an_error(verify):
    with pytest.raises(ValueError, match=r"the record has no '.*'; its keys are 'prompt'"):
        verify("", "1", {"prompt": "x"})


def test_a_right_answer_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="has no number: 'many'"):
        number("", "1", {"answer": "many"})
