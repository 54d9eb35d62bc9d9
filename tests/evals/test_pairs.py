"""Held-out pairs by hand: accuracy, margins and calibration, beside the rule that the longer answer wins."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.evals.pairs import EDGES, make_pair_evaluation
from hllm_jax.objectives import pairwise_sums
from hllm_jax.objectives.preference import Pair
from hllm_jax.testing.training import toy_layout

#: chosen and rejected score, their tokens, weight: right, wrong, alike, and a row that fills the batch.
ROWS = [(2.0, 0.0, 5, 2, 1.0), (0.0, 1.0, 3, 3, 1.0), (1.0, 1.0, 2, 4, 0.5), (9.0, 0.0, 9, 1, 0.0)]


class Batches:
    """Two batches of two rows."""

    batch_size = 2

    def __len__(self) -> int:
        return 2

    def rows(self, n: int, start: int, stop: int) -> dict[str, np.ndarray]:
        rows = ROWS[2 * n : 2 * n + 2][start:stop]
        found: dict[str, Any] = {"pair_weights": np.array([row[4] for row in rows], np.float32)}
        for side, number in (("chosen", 0), ("rejected", 1)):
            found[f"{side}_tokens"] = np.array([[row[number]] * 10 for row in rows], np.float32)
            lengths = np.array([row[number + 2] for row in rows])
            found[f"{side}_weights"] = (np.arange(10) < lengths[:, None]).astype(np.float32)
        return found


def scores(variables: Any, batch: Any) -> Pair:
    del variables
    return Pair(batch["chosen_tokens"][:, 0], batch["rejected_tokens"][:, 0])


def loss(variables: Any, batch: Any, rng: Any) -> Any:
    del rng
    return pairwise_sums(*scores(variables, batch), batch["pair_weights"])


def test_held_out_pairs_by_hand() -> None:
    layout, noted = toy_layout(), []
    measure = make_pair_evaluation(loss, layout, Batches(), scores=scores, note=noted.append)
    found = measure(layout.init(0))
    # -log σ(2), -log σ(-1) and half of ln 2, over 2.5 pairs; one of 2.5 is right.
    assert found["eval/loss"] == pytest.approx((0.126928 + 1.313262 + 0.5 * 0.693147) / 2.5, abs=1e-5)
    assert found["eval/accuracy"] == pytest.approx(1 / 2.5)
    # By length: the first is right, the second is a tie, the third is wrong.
    assert found["eval/longer_wins"] == pytest.approx(1.5 / 2.5)
    assert found["eval/pairs"] == 2.5
    # σ(2) = 0.881 and right; σ(1) = 0.731 and wrong; σ(0) = 0.5 and half right.
    assert found["eval/calibration_error"] == pytest.approx((0.119203 + 0.731059) / 2.5, abs=1e-4)
    (line,) = noted
    assert line["step"] == 0
    assert line["edges"] == list(EDGES)
    filled = {i: n for i, n in enumerate(line["margins"]) if n}
    place = {margin: int(np.searchsorted(EDGES, margin, side="right")) for margin in (2.0, -1.0, 0.0)}
    assert filled == {place[2.0]: 1.0, place[-1.0]: 1.0, place[0.0]: 0.5}
    assert sum(line["count"]) == 2.5
    assert sum(line["right"]) == 1.25


def test_fewer_batches_are_the_first_ones() -> None:
    layout = toy_layout()
    found = make_pair_evaluation(loss, layout, Batches(), limit=1, scores=scores)(layout.init(0))
    assert found["eval/pairs"] == 2.0
    assert float(jnp.asarray(found["eval/margin"])) == pytest.approx(0.5)
