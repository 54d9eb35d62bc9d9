"""Learning rates at the updates that matter, exactly."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.config import Invalid
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


def test_noam_is_equation_3() -> None:
    """Vaswani et al. 2017: d^-0.5 · min(n^-0.5, n · warmup^-1.5); for 512 and 4,000 at most 6.99e-4."""
    schedule = make_schedule(ScheduleConfig(kind="noam", width=512, warmup=4000), 10**6)
    rate = {n: float(schedule(jnp.asarray(n - 1))) for n in (1, 2000, 3999, 4000, 4001, 16000)}
    assert rate[4000] == pytest.approx(6.98771e-4, rel=1e-5)
    assert rate[4000] == max(rate.values())
    assert rate[1] == pytest.approx(512**-0.5 * 4000**-1.5, rel=1e-5)
    assert rate[2000] == pytest.approx(rate[4000] / 2, rel=1e-5)
    assert rate[16000] == pytest.approx(rate[4000] / 2, rel=1e-5)


def test_inverse_square_root_is_that_of_t5() -> None:
    """1/√max(n, 10,000): 0.01 for the first 10,000 updates."""
    schedule = make_schedule(ScheduleConfig(kind="inverse_sqrt", peak=0.01, warmup=10_000), 10**6)
    rate = {n: float(schedule(jnp.asarray(n - 1))) for n in (1, 10_000, 40_000, 1_000_000)}
    assert rate == pytest.approx({1: 0.01, 10_000: 0.01, 40_000: 0.005, 1_000_000: 0.001}, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"kind": "noam"}, "width"),
        ({"kind": "noam", "width": 512, "peak": 1e-3}, "peak"),
        ({"kind": "noam", "width": 512, "warmup": 0}, "warmup"),
        ({"kind": "inverse_sqrt", "warmup": 0}, "warmup"),
        ({"kind": "cosine", "width": 512}, "width"),
    ],
)
def test_settings_that_a_schedule_does_not_use_are_refused(settings: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        ScheduleConfig(**settings)
    assert [name for name, _ in caught.value.problems] == [field]


def test_a_run_may_end_before_the_warm_up_of_2017_does() -> None:
    schedule = make_schedule(ScheduleConfig(kind="noam", width=512, warmup=4000), 10)
    assert float(schedule(jnp.asarray(9))) == pytest.approx(10 * 512**-0.5 * 4000**-1.5, rel=1e-5)
