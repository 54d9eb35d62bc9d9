"""Learning rate schedules whose start, peak and end are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hllm_jax.training.config import ScheduleConfig, schedule_problem, warmup_updates

#: Update (int32 scalar, from 0) -> learning rate (float32 scalar).
Schedule: TypeAlias = Callable[[jax.Array], jax.Array]


def make_schedule(config: ScheduleConfig, steps: int) -> Schedule:
    """The schedule of a run of so many updates, counted in updates and not in microbatches.

    With w updates of warm-up and the last update T = steps - 1:

        n < w           start·peak + (1 - start)·peak · n/w        (update w has exactly `peak`)
        cosine          end + (peak - end)·(1 + cos(π·r))/2,       r = (n - w)/(T - w)
        linear          end + (peak - end)·(1 - r)
        wsd             peak until d = decay·steps updates are left, then linear to end
        constant        peak
        noam            width^-0.5 · min(m^-0.5, m · w^-1.5),   m = n + 1   (Vaswani et al. 2017, eq. 3)
        inverse_sqrt    peak · √(w / max(m, w))

    `end` here is `config.end · peak`; update T has exactly that, and so has everything after it. The last two
    do not warm up otherwise and have no end. T5 (Raffel et al. 2020, section 3.1.2) has `inverse_sqrt` with
    w = 10,000 and peak = 1/√w.

    Raises:
        ValueError: the warm-up (and the decay of `wsd`) does not fit into the steps.
    """
    if found := schedule_problem(config, steps):
        raise ValueError(f"schedule.{found[0]}: {found[1]}")
    warmup, last = warmup_updates(config, steps), steps - 1
    if config.kind == "noam":
        assert config.width is not None, "checked by the config"
        return noam(config.width, warmup)
    if config.kind == "inverse_sqrt":
        return inverse_sqrt(config.peak, warmup)
    peak, start, end = config.peak, config.start * config.peak, config.end * config.peak
    begin = warmup
    if config.kind == "wsd":
        begin = max(last - round(config.decay * steps), 0)

    def schedule(step: jax.Array) -> jax.Array:
        n = jnp.asarray(step, jnp.float32)
        rising = start + (peak - start) * (n / max(warmup, 1))
        # In this order, so that r is exactly 1 at the last update and 0 at the first after the warm-up.
        r = jnp.clip((n - begin) / max(last - begin, 1), 0.0, 1.0)
        if config.kind == "cosine":
            falling = end + (peak - end) * (0.5 * (1.0 + jnp.cos(jnp.pi * r)))
        elif config.kind == "constant":
            falling = jnp.full_like(r, peak)
        else:
            falling = end + (peak - end) * (1.0 - r)
        falling = jnp.where(r == 0.0, peak, falling)
        if config.kind != "constant":
            falling = jnp.where(r == 1.0, end, falling)
        return jnp.where(n < warmup, rising, falling).astype(jnp.float32)

    return schedule


def noam(width: int, warmup: int) -> Schedule:
    """Vaswani et al. 2017, eq. 3, in which updates count from 1."""

    def schedule(step: jax.Array) -> jax.Array:
        m = jnp.asarray(step, jnp.float32) + 1.0
        return (width**-0.5 * jnp.minimum(m**-0.5, m * warmup**-1.5)).astype(jnp.float32)

    return schedule


def inverse_sqrt(peak: float, warmup: int) -> Schedule:
    """T5's: constant for `warmup` updates, then falling with the inverse square root."""

    def schedule(step: jax.Array) -> jax.Array:
        m = jnp.asarray(step, jnp.float32) + 1.0
        return (peak * jnp.sqrt(warmup / jnp.maximum(m, warmup))).astype(jnp.float32)

    return schedule
