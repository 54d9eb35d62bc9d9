"""Advantages without a value model: an answer against the other answers to the same prompt."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from hllm_jax.objectives.masks import only
from hllm_jax.objectives.sums import quotient

#: What the distance from the mean of the group is divided by; see `group_advantages`.
Scale: TypeAlias = Literal["std", "none"]


def group_advantages(
    rewards: jax.Array,
    scale: Scale = "std",
    weights: jax.Array | None = None,
    epsilon: float = 1e-4,
) -> jax.Array:
    """GRPO's advantages (Shao et al. 2024, section 4.1.2), or Dr. GRPO's, which leave the spread as it is.

        std:   (r - mean) / (std + ε)          none:   r - mean          (Liu et al. 2025, section 3.2)

    The standard deviation is the unbiased one (over n - 1), as in `trl`. Where all rewards of a group are
    equal there is nothing to learn: the advantages are 0 exactly, whatever rounding did to the mean. By hand,
    rewards (1, 0, 0, 1): mean 1/2, std sqrt(1/3) = 0.57735, advantages ±0.86588; with `none` ±1/2.

    Args:
        rewards: float `[P, G]`: prompts, and the answers to each.
        scale: by name.
        weights: `[P, G]`, 0 for an answer that has no reward or is left out; None: all count.
        epsilon: added to the standard deviation.

    Returns:
        float32 `[P, G]`, 0 where there is no weight.

    Raises:
        ValueError: groups of one, or no such scale.
    """
    rewards, held, count = _groups(rewards, weights)
    mean = quotient(jnp.sum(rewards, axis=1, keepdims=True), count)
    advantages = rewards - mean
    if scale == "std":
        spread = jnp.sum(held * jnp.square(advantages), axis=1, keepdims=True)
        advantages = advantages / (jnp.sqrt(spread / jnp.maximum(count - 1.0, 1.0)) + epsilon)
    elif scale != "none":
        raise ValueError(f"scale {scale!r} is not known; choose one of {', '.join(get_args(Scale))}")
    return jnp.where(_degenerate(rewards, held), 0.0, held * advantages)


def leave_one_out(rewards: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """RLOO's advantages: the baseline is the mean of the other answers (Ahmadian et al. 2024).

        A_i = r_i - 1/(n - 1)·Σ_{j≠i} r_j

    By hand, rewards (3, 0, 0): (3, -1.5, -1.5).

    Args:
        rewards: float `[P, G]`.
        weights: `[P, G]`; see `group_advantages`.

    Returns:
        float32 `[P, G]`, 0 where there is no weight.

    Raises:
        ValueError: groups of one.
    """
    rewards, held, count = _groups(rewards, weights)
    others = (jnp.sum(rewards, axis=1, keepdims=True) - rewards) / jnp.maximum(count - 1.0, 1.0)
    return jnp.where(_degenerate(rewards, held), 0.0, held * (rewards - others))


def best_of_group(rewards: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Rejection sampling: 1 for the best answer to each prompt, 0 for the others (RAFT: Dong et al.
    2023; Touvron et al. 2023, section 3.2.3).

    Of several that are best the first is taken. Where all are equal, none is better than the others and none
    is learned from. By hand, rewards (0, 3, 3): (0, 1, 0).

    Args:
        rewards: float `[P, G]`.
        weights: `[P, G]`; see `group_advantages`.

    Returns:
        float32 `[P, G]`.

    Raises:
        ValueError: groups of one.
    """
    rewards, held, _ = _groups(rewards, weights)
    best = jnp.argmax(jnp.where(held != 0, rewards, -jnp.inf), axis=1)
    chosen = jax.nn.one_hot(best, rewards.shape[1], dtype=jnp.float32)
    return jnp.where(_degenerate(rewards, held), 0.0, chosen)


def degenerate_groups(rewards: jax.Array, weights: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """How many groups teach nothing (all rewards equal, or fewer than two), of how many: an entry of `Sums`.

    A group without any weight is not counted.

    Args:
        rewards, weights: see `group_advantages`.
    """
    rewards, held, count = _groups(rewards, weights)
    there = (count > 0).astype(jnp.float32)
    return jnp.sum(there * _degenerate(rewards, held).astype(jnp.float32)), jnp.sum(there)


def _groups(rewards: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rewards (0 where left out), who counts (0 or 1), and how many of each group `[P, 1]`; float32."""
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards of shape {rewards.shape}: they must be [prompts, answers to each] with two answers or "
            "more, for an answer is compared with the others to its prompt"
        )
    weights = jnp.ones_like(rewards) if weights is None else weights
    held = weights.astype(bool).astype(jnp.float32)
    return only(rewards, held), held, jnp.sum(held, axis=1, keepdims=True)


def _degenerate(rewards: jax.Array, held: jax.Array) -> jax.Array:
    """Bool `[P, 1]`: all rewards that count are equal, or there are fewer than two."""
    highest = jnp.max(jnp.where(held != 0, rewards, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(held != 0, rewards, jnp.inf), axis=1, keepdims=True)
    return highest <= lowest
