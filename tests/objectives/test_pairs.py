"""Scores of pairs: where they are read, and that batch mates and padding do not matter."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from hllm_jax.objectives import mean, pair_scores, pairwise_reward
from hllm_jax.objectives.pairs import apart, both
from hllm_jax.testing.models import tiny_config, tiny_model

MODEL, PARAMS = tiny_model(tiny_config(head="score"))
APPLY = jax.jit(lambda batch: pair_scores(MODEL, {"params": PARAMS}, batch, None)[0])
LOSS = jax.jit(lambda batch: mean(pairwise_reward(MODEL, 0.01)({"params": PARAMS}, batch, None)))


def loss_of(batch: Any) -> dict[str, float]:
    return {name: float(value) for name, value in LOSS(batch).items()}


def pairs(pad: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {"margins": np.array([0.5, 0, 0], np.float32)}
    batch["pair_weights"] = np.array([1, 0.5, 0], np.float32)
    for side in ("chosen", "rejected"):
        held = np.arange(9)[None, :] < rng.integers(3, 10, (3, 1))
        held[2] = False
        batch[f"{side}_tokens"] = np.where(held, rng.integers(1, 67, (3, 9)), pad).astype(np.int32)
        batch[f"{side}_segment_ids"] = held.astype(np.int32)
        batch[f"{side}_positions"] = np.where(held, np.arange(9)[None, :], 0).astype(np.int32)
    return batch


def test_both_sides_lie_beside_each_other_and_come_apart() -> None:
    batch = pairs()
    rows = both(batch, "tokens")
    np.testing.assert_array_equal(rows[2], batch["chosen_tokens"][1])
    np.testing.assert_array_equal(rows[3], batch["rejected_tokens"][1])
    for side, name in zip(apart(rows), ("chosen_tokens", "rejected_tokens"), strict=True):
        np.testing.assert_array_equal(side, batch[name])


def test_the_score_is_that_of_the_last_token_alone_or_in_a_batch() -> None:
    batch = pairs()
    found = APPLY(batch)
    apply = jax.jit(lambda tokens: MODEL.apply({"params": PARAMS}, tokens, method="score"))
    for side, scores in zip(("chosen", "rejected"), found, strict=True):
        for row in range(2):
            end = int(batch[f"{side}_segment_ids"][row].sum())
            # A causal model does not see what comes after: the same row without segments.
            alone = apply(batch[f"{side}_tokens"][row : row + 1])[0, end - 1]
            assert float(scores[row]) == pytest.approx(float(alone), abs=1e-4)
    # Whatever id fills the rows, a word or the end of text.
    for ours, theirs in zip(APPLY(pairs(pad=11)), found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert [float(side[2]) for side in found] == [0.0, 0.0]


def test_a_row_that_fills_the_batch_does_not_count() -> None:
    batch = pairs()
    found = loss_of(batch)
    batch["chosen_tokens"][2], batch["chosen_segment_ids"][2] = 5, 1
    assert loss_of(batch) == pytest.approx(found)
    scores = APPLY(batch)
    one, other = (float(scores.chosen[i] - scores.rejected[i]) for i in range(2))
    assert found["margin"] == pytest.approx((one + 0.5 * other) / 1.5, rel=1e-4)
