"""Learning from preferences without a reward model: DPO, IPO, KTO, ORPO and SimPO.

All of them look at the log-probability of whole answers: a sum over its tokens, or a mean (`answers` makes
both from those of the tokens). A pair of weight 0 changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hllm_jax.objectives.masks import only, row_means, row_sums, weighted
from hllm_jax.objectives.sums import Sums, quotient


class Pair(NamedTuple):
    """The same thing of the chosen and of the rejected answers, `[B]` each."""

    chosen: jax.Array
    rejected: jax.Array


def answers(log_probs: Pair, weights: Pair, per_token: bool = False) -> Pair:
    """Log-probabilities of answers from those of their tokens, float32 `[B]` each.

    Args:
        log_probs: `[B, L]` each; the two may be of different L.
        weights: `[B, L]` each, 1 on the tokens of the answer, 0 on the prompt and on padding.
        per_token: their mean over the tokens, not their sum: for IPO, ORPO and SimPO.
    """
    reduce = row_means if per_token else row_sums
    return Pair(reduce(log_probs.chosen, weights.chosen), reduce(log_probs.rejected, weights.rejected))


def dpo_sums(
    policy: Pair, reference: Pair, weights: jax.Array, beta: float = 0.1, label_smoothing: float = 0.0
) -> Sums:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

        Δ = (policy - reference)(chosen) - (policy - reference)(rejected)
        loss = Σ w·(-(1 - ε)·log σ(β·Δ) - ε·log σ(-β·Δ)) / Σ w

    Before the first step policy and reference agree: loss ln 2, margin 0. With ε, the share of labels that
    are wrong, it is the conservative DPO (Mitchell 2023). By hand, log-ratios 2 and -1, β = 0.1: Δ = 3,
    -log σ(0.3) = 0.55436; with ε = 0.1 also 0.1·0.85436, together 0.58436.

    Args:
        policy, reference: log-probabilities of answers, summed over tokens, `[B]`.
        weights: `[B]`.
        beta: how strongly the policy is held to the reference.
        label_smoothing: ε.

    Returns:
        `loss` and those of `reward_sums`.
    """
    rewards = implicit_rewards(policy, reference, weights, beta)
    return {
        "loss": weighted(_logistic(rewards.chosen - rewards.rejected, label_smoothing), weights),
        **reward_sums(rewards, weights),
    }


def ipo_sums(policy: Pair, reference: Pair, weights: jax.Array, beta: float = 0.1) -> Sums:
    """Identity preference optimisation (Azar et al. 2023, eq. 17): the margin is drawn to a fixed distance.

        loss = Σ w·(Δ - 1/(2β))² / Σ w          Δ as in DPO; β is their τ

    By hand, log-ratios 2 and -1, β = 0.1: (3 - 5)² = 4.

    Args:
        policy, reference: log-probabilities of answers, `[B]`: means over tokens (as `trl`, after asking the
            authors; a sum would draw long answers as far as short ones with many times the distance).
        weights: `[B]`.
        beta: see above.

    Returns:
        `loss` and those of `reward_sums`.
    """
    rewards = implicit_rewards(policy, reference, weights, 1.0)
    distance = rewards.chosen - rewards.rejected - 1.0 / (2.0 * beta)
    scaled = Pair(beta * rewards.chosen, beta * rewards.rejected)
    return {"loss": weighted(jnp.square(distance), weights), **reward_sums(scaled, weights)}


def orpo_sums(policy: Pair, weights: jax.Array, beta: float = 0.1) -> Sums:
    """Odds ratio preference optimisation (Hong et al. 2024, eq. 6 and 7): no reference.

        odds(y) = p/(1 - p),  p = exp(mean log-probability of its tokens)
        loss = Σ w·(-log p(chosen) - β·log σ(log odds(chosen) - log odds(rejected))) / Σ w

    By hand, p = 1/2 and 1/4: odds 1 and 1/3, -log σ(ln 3) = ln 4/3, loss ln 2 + β·0.28768.

    Args:
        policy: log-probabilities of answers, means over tokens, `[B]`.
        weights: `[B]`.
        beta: their λ.

    Returns:
        `loss`, `nll` (its first term), `log_odds` and those of `reward_sums`.
    """
    chosen, rejected = (jnp.where(weights.astype(bool), x.astype(jnp.float32), -1.0) for x in policy)
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    return {
        "loss": weighted(-chosen + beta * _logistic(log_odds), weights),
        "nll": weighted(jax.lax.stop_gradient(-chosen), weights),
        "log_odds": weighted(jax.lax.stop_gradient(log_odds), weights),
        **reward_sums(Pair(beta * chosen, beta * rejected), weights),
    }


def simpo_sums(
    policy: Pair, weights: jax.Array, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0
) -> Sums:
    """Simple preference optimisation (Meng et al. 2024, eq. 6): no reference, a margin to be reached.

        loss = Σ w·(-log σ(β·(chosen - rejected) - γ)) / Σ w

    By hand, means -1 and -2, β = 2, γ = 1: -log σ(2 - 1) = 0.31326.

    Args:
        policy: log-probabilities of answers, means over tokens, `[B]`.
        weights: `[B]`.
        beta: scale of the reward.
        gamma: γ, in units of the reward.
        label_smoothing: see `dpo_sums`.

    Returns:
        `loss` and those of `reward_sums`.
    """
    chosen, rejected = (beta * only(x, weights) for x in policy)
    return {
        "loss": weighted(_logistic(chosen - rejected - gamma, label_smoothing), weights),
        **reward_sums(Pair(chosen, rejected), weights),
    }


def kto_baseline(policy: jax.Array, reference: jax.Array, weights: jax.Array) -> jax.Array:
    """KTO's reference point z0 = max(0, mean(policy - reference)), a float32 scalar without a gradient.

    Args:
        policy, reference: log-probabilities, `[B]`, of answers that belong to *other* prompts: each prompt
            with the answer of the next row (Ethayarajh et al. 2024, section 4).
        weights: `[B]`. z0 is of the rows that are given, so give those of the whole batch.
    """
    top, bottom = weighted(only(policy, weights) - only(reference, weights), weights)
    return jax.lax.stop_gradient(jnp.maximum(quotient(top, bottom), 0.0))


def kto_sums(
    policy: jax.Array,
    reference: jax.Array,
    desirable: jax.Array,
    baseline: jax.Array,
    weights: jax.Array,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Sums:
    """Kahneman–Tversky optimisation (Ethayarajh et al. 2024, section 4): single answers, good or bad.

        good:  λ_D·(1 - σ(β·(policy - reference - z0)))
        bad:   λ_U·(1 - σ(β·(z0 - policy + reference)))          the mean of Σ w·loss over Σ w, λ not in it

    By hand, log-ratio 2, z0 = 0, β = 0.5: good 1 - σ(1) = 0.26894, bad 1 - σ(-1) = 0.73106.

    Args:
        policy, reference: log-probabilities of answers, summed over tokens, `[B]`.
        desirable: bool `[B]`.
        baseline: z0, from `kto_baseline`.
        weights: `[B]`.
        beta: see above.
        desirable_weight, undesirable_weight: λ_D and λ_U; where there are more rows of one kind, they are set
            so that λ_D·n_D and λ_U·n_U are about the same.

    Returns:
        `loss`, `reward_desirable` and `reward_undesirable`.
    """
    log_ratio = only(policy, weights) - only(reference, weights)
    good, weights = desirable.astype(jnp.float32), weights.astype(jnp.float32)
    sign = 2.0 * good - 1.0
    scale = desirable_weight * good + undesirable_weight * (1.0 - good)
    losses = scale * jax.nn.sigmoid(-beta * sign * (log_ratio - baseline))
    rewards = jax.lax.stop_gradient(beta * log_ratio)
    return {
        "loss": weighted(losses, weights),
        "reward_desirable": weighted(rewards, weights * good),
        "reward_undesirable": weighted(rewards, weights * (1.0 - good)),
    }


def implicit_rewards(policy: Pair, reference: Pair, weights: jax.Array, beta: float) -> Pair:
    """`β·(policy - reference)`, float32 `[B]` each, 0 where there is no weight."""
    chosen, rejected = (
        beta * (only(ours, weights) - only(theirs, weights))
        for ours, theirs in zip(policy, reference, strict=True)
    )
    return Pair(chosen, rejected)


def reward_sums(rewards: Pair, weights: jax.Array) -> Sums:
    """`reward_chosen`, `reward_rejected`, `margin` and `accuracy` (chosen above rejected), no gradient."""
    chosen, rejected = (jax.lax.stop_gradient(x) for x in rewards)
    return {
        "reward_chosen": weighted(chosen, weights),
        "reward_rejected": weighted(rejected, weights),
        "margin": weighted(chosen - rejected, weights),
        "accuracy": weighted((chosen > rejected).astype(jnp.float32), weights),
    }


def _logistic(logits: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """`-(1 - ε)·log σ(x) - ε·log σ(-x)`."""
    loss = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(logits)
    return loss - label_smoothing * jax.nn.log_sigmoid(-logits) if label_smoothing else loss


def _log_odds(x: jax.Array) -> jax.Array:
    """log p - log(1 - p) of x = log p; an answer that is certain in float32 is held to be so up to 1e-6."""
    return x - _log1mexp(jnp.minimum(x, -1e-6))


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, without cancellation at either end (Mächler 2012)."""
    near = x > -0.6931472
    # Each branch gets only what it can bear: a NaN of the other one would reach the gradient.
    of_near = jnp.log(-jnp.expm1(jnp.where(near, x, -0.5)))
    of_far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, of_near, of_far)
