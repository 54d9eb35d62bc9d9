"""From scores of whole answers to an advantage for every token: rewards, truncation, and GAE.

`actions` says which positions the policy chose; it comes from the sampler. Pads may stand on either side of
them, and tokens of a tool between them: what is no action has no reward, value or advantage.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from hllm_jax.objectives.kl import Estimator, kl_estimate
from hllm_jax.objectives.masks import is_last, only

#: What becomes of an answer that was cut at the length limit; see `truncation_policy`.
Truncation: TypeAlias = Literal["keep", "mask", "penalise", "replace"]


class TokenRewards(NamedTuple):
    """Rewards of the actions, and the KL that is in them, float32 `[B, L]` each, 0 on other positions."""

    rewards: jax.Array
    kl: jax.Array


class Advantages(NamedTuple):
    """Of the actions, float32 `[B, L]` each, 0 on other positions.

    Attributes:
        advantages: how much better than expected.
        returns: what the value should have been, advantage + value.
    """

    advantages: jax.Array
    returns: jax.Array


def clip_scores(scores: jax.Array, limit: float | None) -> jax.Array:
    """Scores in [-limit, limit], any shape; None: as they are."""
    return scores if limit is None else jnp.clip(scores, -limit, limit)


def truncation_policy(
    scores: jax.Array,
    actions: jax.Array,
    truncated: jax.Array,
    policy: Truncation = "keep",
    value: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """What becomes of answers that were cut at the length limit.

    - `keep`: scored like others.
    - `mask`: left out, as if they had not been sampled (Yu et al. 2025, section 3.4, overlong filtering).
    - `penalise`: `value` is subtracted from their score (`missing_eos_penalty` of `trl`).
    - `replace`: `value` is their score (Ziegler et al. 2019: -1 for a text without an end).

    Args:
        scores: float `[B]`.
        actions: `[B, L]`.
        truncated: bool `[B]`, from the sampler: no stop was drawn.
        policy: by name.
        value: see above.

    Returns:
        `scores` and `actions`, changed in the rows that are truncated.

    Raises:
        ValueError: no such policy.
    """
    if policy == "keep":
        return scores, actions
    if policy == "mask":
        return scores, jnp.where(truncated[:, None], jnp.zeros_like(actions), actions)
    if policy == "penalise":
        return jnp.where(truncated, scores - value, scores), actions
    if policy == "replace":
        return jnp.where(truncated, jnp.full_like(scores, value), scores), actions
    raise ValueError(f"truncation {policy!r} is not known; choose one of {', '.join(get_args(Truncation))}")


def token_rewards(
    scores: jax.Array,
    log_probs: jax.Array,
    reference: jax.Array,
    actions: jax.Array,
    beta: jax.Array | float,
    estimator: Estimator = "k1",
) -> TokenRewards:
    """A cost for leaving the reference on every action, and the score once, on the last.

        r_t = -β·kl_t + [t is the last action]·score          (Ziegler et al. 2019, eq. 2)

    The score enters exactly once, where the answer ends by `actions`; a row without an action has none.

    Args:
        scores: float `[B]`.
        log_probs, reference: float `[B, L]`, of the policy that sampled and of the reference.
        actions: `[B, L]`.
        beta: coefficient; 0 where the KL is in the loss.
        estimator: see `kl_estimate`.

    Returns:
        The rewards, and the KL of each action: what is logged is what was subtracted.
    """
    kl = kl_estimate(only(log_probs, actions), only(reference, actions), estimator)
    terminal = jnp.where(is_last(actions), scores.astype(jnp.float32)[:, None], 0.0)
    return TokenRewards(terminal - beta * kl, kl)


def gae(
    rewards: jax.Array, values: jax.Array, actions: jax.Array, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), from each action to the next one.

        δ_t = r_t + γ·V_next - V_t          A_t = δ_t + γλ·A_next          R_t = A_t + V_t

    After the last action nothing follows: V_next = A_next = 0. By hand, γ = 1 and λ = 1/2, a prompt token,
    three actions and a pad, β = 0.1 and a score of 1:

        kl      ·   0.5     -0.5     1.0    ·
        r       0  -0.05     0.05    0.9    0         -0.1·kl, and the score on the last
        V       ·   0.5      0.25    1.0    ·
        δ       0  -0.3      0.8    -0.1    0         -0.05 + 0.25 - 0.5;  0.05 + 1 - 0.25;  0.9 - 1
        A       0   0.075    0.75   -0.1    0         -0.3 + 0.75/2;  0.8 - 0.1/2
        R       0   0.575    1.0     0.9    0

    Args:
        rewards: float `[B, L]`.
        values: float `[B, L]`: of the state in which the action is chosen, before its token is read.
        actions: `[B, L]`.
        gamma: discount γ of a step.
        lam: λ, 0 for one step of bootstrapping, 1 for the whole return.
    """
    chosen = actions.astype(bool)
    rewards, values = only(rewards, chosen), only(values, chosen)
    held = chosen.astype(jnp.float32)
    nearest = _backwards(1.0 - held, values)
    following = jnp.pad(nearest[:, 1:], ((0, 0), (0, 1)))
    delta = held * (rewards + gamma * following - values)
    advantages = only(_backwards(jnp.where(chosen, gamma * lam, 1.0), delta), chosen)
    return Advantages(advantages, advantages + values)


def _backwards(scale: jax.Array, offset: jax.Array) -> jax.Array:
    """x with x_t = offset_t + scale_t·x_{t+1} and nothing after the end; log L steps. All `[B, L]`."""

    def after(
        later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    return jax.lax.associative_scan(after, (scale, offset), reverse=True, axis=1)[1]
