"""Reward models: learning a score from comparisons, and how much such a score is worth."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hllm_jax.objectives.masks import only, weighted
from hllm_jax.objectives.sums import Sums, quotient


class Reliability(NamedTuple):
    """How often a model is right where it is that sure: sums over pairs in bins of equal width.

    Bin b of n has the pairs whose confidence, σ(|margin|), is in [½ + b/2n, ½ + (b + 1)/2n). Sums of two
    parts of a data set add up.

    Attributes:
        count: weight of the pairs in the bin, float32 `[n]`.
        confidence: sum of their confidences, float32 `[n]`.
        right: weight of those whose chosen answer has the higher score (half of it where both are alike).
    """

    count: jax.Array
    confidence: jax.Array
    right: jax.Array


def pairwise_sums(
    chosen: jax.Array,
    rejected: jax.Array,
    weights: jax.Array,
    margins: jax.Array | None = None,
    centering: float = 0.0,
) -> Sums:
    """The Bradley–Terry loss of a pair (Stiennon et al. 2020, section 3.4).

        loss = Σ w·(-log σ(chosen - rejected - margin) + centering·(chosen + rejected)²) / Σ w

    The margin is that of Touvron et al. 2023, eq. 2. Scores are free up to a constant; centring draws their
    mean to 0 (Eisenstein et al. 2023; `center_rewards_coefficient` of `trl`). By hand, scores 2 and 1:
    -log σ(1) = 0.31326, with margin 1 ln 2, and with centring 0.01 more by 0.01·9.

    Args:
        chosen, rejected: scores, float `[B]`.
        weights: `[B]`.
        margins: float `[B]`, how much better the chosen answer is; None: 0.
        centering: coefficient.

    Returns:
        `loss`, `accuracy`, `margin`, `reward_chosen` and `reward_rejected`.
    """
    chosen, rejected = only(chosen, weights), only(rejected, weights)
    difference = chosen - rejected
    wanted = difference if margins is None else difference - only(margins, weights)
    cost = -jax.nn.log_sigmoid(wanted)
    if centering:
        cost = cost + centering * jnp.square(chosen + rejected)
    return {
        "loss": weighted(cost, weights),
        "accuracy": weighted((difference > 0).astype(jnp.float32), weights),
        "margin": weighted(jax.lax.stop_gradient(difference), weights),
        "reward_chosen": weighted(jax.lax.stop_gradient(chosen), weights),
        "reward_rejected": weighted(jax.lax.stop_gradient(rejected), weights),
    }


def ranking_sums(scores: jax.Array, ranks: jax.Array, weights: jax.Array, centering: float = 0.0) -> Sums:
    """The loss of K ranked answers to a prompt (Ouyang et al. 2022, eq. 1).

        loss = Σ_p (1/pairs(p))·Σ_{i above j} -log σ(r_i - r_j) / prompts          pairs(p) = C(K, 2)

    All comparisons of a prompt are one element of the batch, as there: a prompt with nine answers does not
    count 36 times. Answers of equal rank are not compared. K = 2 is `pairwise_sums`. By hand, scores
    (2, 1, 1) in this order: (0.31326 + 0.31326 + ln 2)/3 = 0.43989.

    Args:
        scores: float `[B, K]`.
        ranks: int `[B, K]`, 0 for the best; any order of the answers.
        weights: `[B, K]`, 0 for an answer that is not there.
        centering: coefficient of the mean over the same pairs of (r_i + r_j)².

    Returns:
        `loss`, `accuracy` and `margin`: means over prompts of means over pairs. A prompt without a pair
        does not count.
    """
    scores, held = only(scores, weights), weights.astype(bool)
    above = held[:, :, None] & held[:, None, :] & (ranks[:, :, None] < ranks[:, None, :])
    compared = above.astype(jnp.float32)
    difference = scores[:, :, None] - scores[:, None, :]
    pairs = jnp.sum(compared, axis=(1, 2))
    prompts = jnp.sum((pairs > 0).astype(jnp.float32))

    def over_pairs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(quotient(jnp.sum(compared * x, axis=(1, 2)), pairs)), prompts

    cost = -jax.nn.log_sigmoid(difference)
    if centering:
        cost = cost + centering * jnp.square(scores[:, :, None] + scores[:, None, :])
    return {
        "loss": over_pairs(cost),
        "accuracy": over_pairs((difference > 0).astype(jnp.float32)),
        "margin": over_pairs(jax.lax.stop_gradient(difference)),
    }


def longer_wins(chosen: jax.Array, rejected: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How often the longer answer is the chosen one: what a reward model must beat. An entry of `Sums`.

    Args:
        chosen, rejected: int `[B]`, tokens of the answers; of equal lengths one in two is right by chance.
        weights: `[B]`.
    """
    right = jnp.where(chosen == rejected, 0.5, (chosen > rejected).astype(jnp.float32))
    return weighted(right, weights)


def margin_histogram(
    chosen: jax.Array, rejected: jax.Array, weights: jax.Array, edges: jax.Array
) -> jax.Array:
    """Weight of the pairs whose margin lies between two edges, float32 `[n + 1]`.

    Args:
        chosen, rejected: scores, float `[B]`.
        weights: `[B]`.
        edges: float `[n]`, rising: bin 0 is below the first, bin n at or above the last.
    """
    margins = only(chosen, weights) - only(rejected, weights)
    return _counts(jnp.searchsorted(edges, margins, side="right"), weights, len(edges) + 1)


def reliability(chosen: jax.Array, rejected: jax.Array, weights: jax.Array, bins: int = 10) -> Reliability:
    """Whether a score means what Bradley–Terry says: at margin m the higher one is right σ(m) of the time.

    Args:
        chosen, rejected: scores, float `[B]`.
        weights: `[B]`.
        bins: of confidence, from ½ to 1.
    """
    margins = only(chosen, weights) - only(rejected, weights)
    confidence = jax.nn.sigmoid(jnp.abs(margins))
    right = jnp.where(margins == 0, 0.5, (margins > 0).astype(jnp.float32))
    place = jnp.minimum(((confidence - 0.5) * 2 * bins).astype(jnp.int32), bins - 1)
    weights = weights.astype(jnp.float32)
    return Reliability(*(_counts(place, weights * x, bins) for x in (1.0, confidence, right)))


def calibration_error(bins: Reliability) -> jax.Array:
    """Expected calibration error (Guo et al. 2017, eq. 3), a float32 scalar in [0, 1].

    Σ_b (n_b / n)·|right_b/n_b - confidence_b/n_b|
    """
    return quotient(jnp.sum(jnp.abs(bins.right - bins.confidence)), jnp.sum(bins.count))


def _counts(place: jax.Array, weights: jax.Array, bins: int) -> jax.Array:
    """Weight in every bin, float32 `[bins]`."""
    hit = place[:, None] == jnp.arange(bins)[None, :]
    return jnp.sum(jnp.where(hit, weights.astype(jnp.float32)[:, None], 0.0), axis=0)
