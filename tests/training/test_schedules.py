"""Learning rates at the updates that matter, exactly."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.training import ScheduleConfig, make_schedule

PEAK = 3e-4


def rates(steps: int, **settings: object) -> np.ndarray:
    schedule = make_schedule(ScheduleConfig(peak=PEAK, **settings), steps)
    return np.asarray([schedule(jnp.asarray(n)) for n in range(steps)])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_start_peak_and_end_are_exact(kind: str) -> None:
    found = rates(101, kind=kind, warmup=10, start=0.0, end=0.1, decay=0.2)
    assert found[0] == 0
    assert found[10] == np.float32(PEAK)
    assert found.max() == np.float32(PEAK)
    assert found[100] == np.float32(0.1 * PEAK)
    assert np.all(np.diff(found[:11]) > 0)
    assert np.all(np.diff(found[10:]) <= 0)
    np.testing.assert_allclose(found[:11], PEAK * np.arange(11) / 10, rtol=1e-6)


def test_cosine_half_way_is_the_mean() -> None:
    found = rates(101, kind="cosine", warmup=0, end=0.1)
    assert found[0] == np.float32(PEAK)
    np.testing.assert_allclose(found[50], 0.55 * PEAK, rtol=1e-6)


def test_wsd_is_flat_between_warm_up_and_decay() -> None:
    found = rates(101, kind="wsd", warmup=10, decay=0.2, end=0.0)
    assert np.all(found[10:81] == np.float32(PEAK))
    np.testing.assert_allclose(found[80:], PEAK * np.linspace(1, 0, 21), rtol=1e-5, atol=1e-12)


def test_constant_and_start() -> None:
    found = rates(10, kind="constant", warmup=4, start=0.5)
    np.testing.assert_allclose(
        found, PEAK * np.asarray([0.5, 0.625, 0.75, 0.875, 1, 1, 1, 1, 1, 1]), rtol=1e-6
    )


def test_warm_up_as_a_share() -> None:
    assert rates(100, warmup=0.1)[10] == np.float32(PEAK)
    assert rates(100, warmup=0.1)[9] < np.float32(PEAK)


def test_after_the_end_stays_the_end() -> None:
    schedule = make_schedule(ScheduleConfig(peak=PEAK, warmup=0, end=0.1), 10)
    assert float(schedule(jnp.asarray(9))) == float(schedule(jnp.asarray(500))) == np.float32(0.1 * PEAK)


def test_phases_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"20 updates of warm-up do not fit into train.steps=10: at most 9"):
        make_schedule(ScheduleConfig(warmup=20), 10)
    with pytest.raises(ValueError, match=r"6 updates of warm-up and 5 of decay overlap in train.steps=10"):
        make_schedule(ScheduleConfig(kind="wsd", warmup=6, decay=0.5), 10)


def test_a_run_of_one_update_has_the_peak() -> None:
    assert rates(1, warmup=0.02)[0] == np.float32(PEAK)
