"""Losses of tasks by hand, and the best answer against all pairs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import mean
from hllm_jax.objectives.tasks import best_answer, make_task_loss


class Output(NamedTuple):
    """What an encoder with a head gives."""

    task_logits: jax.Array


class Fixed(nn.Module):
    """Says the same whatever comes."""

    logits: Any

    def __call__(self, tokens: jax.Array, **ignored: Any) -> Output:
        return Output(jnp.asarray(self.logits, jnp.float32))


def rows(count: int, length: int) -> dict[str, jax.Array]:
    names = ("tokens", "segment_ids", "positions", "token_types")
    return {name: jnp.ones((count, length), jnp.int32) for name in names}


def test_classes_by_hand() -> None:
    """(1/4, 3/4) and class 1, class 0, and an empty row: (ln 4/3 + ln 4) / 2."""
    logits = ((0.0, math.log(3)),) * 3
    batch = rows(3, 2) | {"labels": jnp.asarray([1, 0, 0]), "weights": jnp.asarray([1.0, 1.0, 0.0])}
    means = mean(make_task_loss("sequence", Fixed(logits))({}, batch, None))
    assert float(means["loss"]) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-6)
    assert float(means["accuracy"]) == 0.5


def test_words_by_hand() -> None:
    logits = (((0.0, math.log(3)),) * 3,)
    batch = rows(1, 3) | {
        "targets": jnp.asarray([[1, 0, 0]]),
        "weights": jnp.asarray([[1.0, 0.0, 1.0]]),
    }
    means = mean(make_task_loss("tokens", Fixed(logits))({}, batch, None))
    assert float(means["loss"]) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-6)


def test_answers_by_hand() -> None:
    """Start logits 0, ln 3, and a third on padding that has no chance; end logits all alike over two."""
    logits = (((0.0, 0.0), (math.log(3), 0.0), (100.0, 100.0)),)
    batch = rows(1, 3) | {
        "segment_ids": jnp.asarray([[1, 1, 0]]),
        "starts": jnp.asarray([1]),
        "ends": jnp.asarray([0]),
        "weights": jnp.asarray([1.0]),
    }
    means = mean(make_task_loss("span", Fixed(logits))({}, batch, None))
    assert float(means["loss"]) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-6)
    assert float(means["accuracy"]) == 1


def test_an_empty_row_is_finite() -> None:
    batch = rows(1, 3) | {
        "segment_ids": jnp.zeros((1, 3), jnp.int32),
        "starts": jnp.asarray([0]),
        "ends": jnp.asarray([0]),
        "weights": jnp.asarray([0.0]),
    }
    loss = make_task_loss("span", Fixed((((1.0, 2.0),) * 3,)))
    assert float(mean(loss({}, batch, None))["loss"]) == 0


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_the_best_answer_is_the_best_of_all_pairs(longest: int) -> None:
    rng = np.random.default_rng(longest)
    start, end = rng.normal(size=(2, 40, 12)).astype(np.float32)
    context = rng.integers(0, 2, (40, 12))
    first, last = (
        np.asarray(found) for found in best_answer(*map(jnp.asarray, (start, end, context)), longest)
    )
    none = 0
    for row in range(40):
        pairs = [
            (start[row, i] + end[row, j], i, j)
            for i in range(12)
            for j in range(i, min(i + longest, 12))
            if context[row, i] and context[row, j]
        ]
        score, i, j = max(pairs, default=(-math.inf, 0, 0))
        if start[row, 0] + end[row, 0] >= score:
            i = j = 0
            none += 1
        assert (first[row], last[row]) == (i, j)
    assert 0 < none < 40
