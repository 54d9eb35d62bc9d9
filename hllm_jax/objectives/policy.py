"""Policy gradients: PPO with its value loss, and GRPO with the denominators of its published variants.

Each loss is a numerator and a denominator that depends on the weights alone, so that any split of a minibatch
adds up to the same gradient. Log-probabilities are those of the distribution that was sampled.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from hllm_jax.objectives.kl import kl_estimate
from hllm_jax.objectives.masks import held_rows, only, row_means, row_sums, weighted
from hllm_jax.objectives.sums import Sums

#: Published forms of GRPO; see `grpo_sums`.
Variant: TypeAlias = Literal["grpo", "dr_grpo", "dapo", "bnpo"]

#: What the sum over the tokens is divided by.
DENOMINATORS: dict[Variant, Literal["sequence", "constant", "token"]] = {
    "grpo": "sequence",
    "dr_grpo": "constant",
    "dapo": "token",
    "bnpo": "token",
}


def surrogate(
    log_ratio: jax.Array,
    advantages: jax.Array,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped objective (Schulman et al. 2017, eq. 7), to be maximised, and where it is clipped.

        r = exp(log_ratio)          min(r·A, clip(r, 1 - clip_low, 1 + clip_high)·A)

    With `dual_clip` c, for A < 0 no less than c·A (Ye et al. 2020; `delta` in `trl`). By hand, A = 2
    and r = 1.5: min(3, 1.2·2) = 2.4, clipped; A = -2 and r = 1.5: min(-3, -2.4) = -3, not clipped; A = -2
    and r = 0.5: min(-1, -1.6) = -1.6, clipped.

    Args:
        log_ratio: new log-probability - old one, any shape.
        advantages: of the same shape.
        clip_low, clip_high: ε below and above; `clip_high=None` is the same as below. Yu et al. 2025 (DAPO,
            "clip-higher"): 0.2 and 0.28.
        dual_clip: larger than 1; None: no bound.

    Returns:
        The objective, and a bool that says where the bound on the ratio is what counts.

    Raises:
        ValueError: `dual_clip` is not larger than 1.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; it bounds the ratio from above, so it is larger than 1")
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + (clip_low if clip_high is None else clip_high))
    free, held = ratio * advantages, bounded * advantages
    objective = jnp.minimum(free, held)
    if dual_clip is not None:
        objective = jnp.where(advantages < 0, jnp.maximum(objective, dual_clip * advantages), objective)
    return objective, held < free


def ppo_policy_sums(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Sums:
    """PPO's policy loss, `-Σ w·surrogate / Σ w` over the actions of the batch.

    Args:
        log_probs, old_log_probs: float `[B, L]`: of the policy now, and when it sampled.
        advantages: float `[B, L]`.
        weights: `[B, L]`, of the actions.
        clip, clip_high, dual_clip: see `surrogate`.

    Returns:
        `loss`, and those of `ratio_sums`.
    """
    log_ratio = only(log_probs, weights) - only(old_log_probs, weights)
    objective, clipped = surrogate(log_ratio, only(advantages, weights), clip, clip_high, dual_clip)
    return {"loss": weighted(-objective, weights), **ratio_sums(log_ratio, clipped, weights)}


def ratio_sums(log_ratio: jax.Array, clipped: jax.Array, weights: jax.Array) -> Sums:
    """How far a policy went from the one that sampled: means over the actions, without a gradient.

    Args:
        log_ratio, clipped: from `surrogate`, `[B, L]`.
        weights: `[B, L]`.

    Returns:
        `ratio` (1 on fresh samples), `clipped` (share of actions), `old_kl` (k3, KL(old ‖ new)).
    """
    log_ratio = jax.lax.stop_gradient(log_ratio)
    return {
        "ratio": weighted(jnp.exp(log_ratio), weights),
        "clipped": weighted(clipped.astype(jnp.float32), weights),
        "old_kl": weighted(kl_estimate(jnp.zeros_like(log_ratio), log_ratio, "k3"), weights),
    }


def value_sums(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    weights: jax.Array,
    clip: float | None = 0.2,
) -> Sums:
    """PPO's value loss, not let far from the values that made the advantages.

        loss = ½·Σ w·max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²) / Σ w

    (OpenAI baselines; Ziegler et al. 2019 use it in their code.) By hand, V = 1, V_old = 0.5, R = 0.8,
    ε = 0.2: clip(V) = 0.7, max(0.04, 0.01)/2 = 0.02; with R = 1.1: max(0.01, 0.16)/2 = 0.08, clipped.

    Args:
        values, old_values, returns: float `[B, L]`.
        weights: `[B, L]`, of the actions.
        clip: ε; None: the plain squared error.

    Returns:
        `loss` and `clipped` (share of the actions where the bound on the value is what counts).
    """
    values, old_values, returns = (only(x, weights) for x in (values, old_values, returns))
    error = jnp.square(values - returns)
    held = error
    if clip is not None:
        held = jnp.square(jnp.clip(values, old_values - clip, old_values + clip) - returns)
    return {
        "loss": weighted(0.5 * jnp.maximum(error, held), weights),
        "clipped": weighted((held > error).astype(jnp.float32), weights),
    }


def ppo_sums(policy: Sums, value: Sums, entropy: jax.Array, weights: jax.Array, c1: float, c2: float) -> Sums:
    """The whole of PPO's loss (Schulman et al. 2017, eq. 9), one denominator for all of it: the actions.

        loss = policy + c1·value - c2·entropy

    Args:
        policy, value: from `ppo_policy_sums` and `value_sums` with the same weights.
        entropy: float `[B, L]`, of the policy now; see `likelihood`.
        weights: `[B, L]`.
        c1, c2: coefficients of the value loss and of the entropy.

    Returns:
        `loss`, `policy_loss`, `value_loss`, `value_clipped`, `entropy` and those of `ratio_sums`.
    """
    spread = weighted(entropy, weights)
    sums = {name: entry for name, entry in policy.items() if name != "loss"}
    sums |= {"policy_loss": policy["loss"], "value_loss": value["loss"], "value_clipped": value["clipped"]}
    sums["entropy"] = spread
    sums["loss"] = (policy["loss"][0] + c1 * value["loss"][0] - c2 * spread[0], spread[1])
    return sums


def grpo_sums(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    variant: Variant = "grpo",
    reference: jax.Array | None = None,
    beta: jax.Array | float = 0.0,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    length: int | None = None,
) -> Sums:
    """GRPO's loss; its variants differ in what the sum over tokens is divided by.

        x_t = -surrogate_t + β·k3_t                       each answer i has one advantage for all its tokens

        grpo      1/N·Σ_i (1/|o_i|)·Σ_t x_t               Shao et al. 2024, eq. 3
        dr_grpo   1/(N·length)·Σ_i Σ_t x_t                Liu et al. 2025, section 3.2, as `trl` has it
        dapo      1/Σ_i |o_i|·Σ_i Σ_t x_t                 Yu et al. 2025, section 3.3; with clip_high 0.28
        bnpo      the same as dapo: `trl` divides by the tokens of a part of the batch, here all parts add up

    N counts the answers that have any weight: one that is left out does not shift the others. By hand, two
    answers of 1 and 3 tokens on fresh samples with advantages 1 and -2: x = -1 and 2, 2, 2; grpo
    (-1 + 2)/2 = 0.5; dr_grpo with length 5 (-1 + 6)/10 = 0.5; dapo (-1 + 6)/4 = 1.25.

    Args:
        log_probs, old_log_probs: float `[B, L]`: of the policy now, and when it sampled.
        advantages: float `[B]`.
        weights: `[B, L]`, of the actions.
        variant: by name.
        reference: float `[B, L]`, log-probabilities of the reference; needed with `beta`.
        beta: of the KL in the loss; 0 where it is in the reward, or nowhere.
        clip_low, clip_high, dual_clip: see `surrogate`.
        length: of the longest answer that may be sampled, for `dr_grpo`.

    Returns:
        `loss`, those of `ratio_sums`, and `kl` where there is a reference: k3, the one that is trained.

    Raises:
        ValueError: no such variant, no length for `dr_grpo`, or no reference for a beta.
    """
    if variant not in DENOMINATORS:
        raise ValueError(f"GRPO variant {variant!r} is not known; choose one of {', '.join(DENOMINATORS)}")
    if reference is None and not (isinstance(beta, float | int) and beta == 0):
        raise ValueError(f"beta is {beta}, so the KL is in the loss; that needs log-probs of the reference")
    log_probs = only(log_probs, weights)
    log_ratio = log_probs - only(old_log_probs, weights)
    of_tokens = jnp.broadcast_to(only(advantages, held_rows(weights))[:, None], log_ratio.shape)
    objective, clipped = surrogate(log_ratio, of_tokens, clip_low, clip_high, dual_clip)
    sums = ratio_sums(log_ratio, clipped, weights)
    cost = -objective
    if reference is not None:
        kl = kl_estimate(log_probs, only(reference, weights), "k3")
        sums["kl"] = weighted(jax.lax.stop_gradient(kl), weights)
        cost = cost + beta * kl
    return {"loss": _divided(cost, weights, variant, length), **sums}


def _divided(
    cost: jax.Array, weights: jax.Array, variant: Variant, length: int | None
) -> tuple[jax.Array, jax.Array]:
    """The entry of `Sums` with the denominator of a variant."""
    rows = jnp.sum(held_rows(weights))
    if DENOMINATORS[variant] == "token":
        return weighted(cost, weights)
    if DENOMINATORS[variant] == "sequence":
        return jnp.sum(row_means(cost, weights)), rows
    if length is None:
        raise ValueError(
            "dr_grpo divides by a constant: say the length of the longest answer that is sampled"
        )
    return weighted(cost, weights)[0] / length, rows


def rloo_sums(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    clip_low: float = 0.2,
    clip_high: float | None = None,
) -> Sums:
    """RLOO's loss: an answer is one action (Ahmadian et al. 2024), with PPO's clip as in `trl`.

        R_i = exp(Σ_t (new - old))          loss = -1/N·Σ_i min(R_i·A_i, clip(R_i)·A_i)

    On fresh samples its gradient is REINFORCE's, -1/N·Σ_i A_i·∇Σ_t log p. By hand, an answer of two tokens
    with log-ratios ln 1.1 and ln 1.2 and A = 1: R = 1.32, cut to 1.2, loss -1.2.

    Args:
        log_probs, old_log_probs: float `[B, L]`.
        advantages: float `[B]`, from `leave_one_out`; the KL is in their rewards.
        weights: `[B, L]`, of the actions.
        clip_low, clip_high: see `surrogate`.

    Returns:
        `loss`, and those of `ratio_sums` over answers.
    """
    rows = held_rows(weights)
    log_ratio = row_sums(only(log_probs, weights) - only(old_log_probs, weights), weights)
    objective, clipped = surrogate(log_ratio, only(advantages, rows), clip_low, clip_high)
    return {"loss": weighted(-objective, rows), **ratio_sums(log_ratio, clipped, rows)}
