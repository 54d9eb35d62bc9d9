"""Losses over a `PairBatch`: of a model that scores texts, and of one that gives them a probability."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.objectives.masks import at_last
from hllm_jax.objectives.preference import Pair
from hllm_jax.objectives.reward import pairwise_sums
from hllm_jax.objectives.routing import Routed, add_routing, apply_model
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables


def both(batch: Batch, name: str) -> jax.Array:
    """An array of the chosen and of the rejected side as one of 2B rows, the two of a pair side by side.

    Pairs stay together, so that rows that are spread over devices stay where they are.
    """
    sides = jnp.stack([batch[f"chosen_{name}"], batch[f"rejected_{name}"]], axis=1)
    return sides.reshape(-1, *sides.shape[2:])


def apart(rows: jax.Array) -> Pair:
    """The inverse of `both`, of something of every row: `[2B, …]` -> two of `[B, …]`."""
    sides = rows.reshape(-1, 2, *rows.shape[1:])
    return Pair(sides[:, 0], sides[:, 1])


def pair_scores(
    model: nn.Module, variables: Variables, batch: Batch, rng: jax.Array | None
) -> tuple[Pair, Routed | None]:
    """The score of both texts of every pair, float32 `[B]` each, and what a router noted.

    A decoder's is that of the last token, found by the segments: what stands at padding does not matter.
    """
    segment_ids = both(batch, "segment_ids")
    found, routed = apply_model(
        model,
        variables,
        rng,
        both(batch, "tokens"),
        method="score",
        segment_ids=segment_ids,
        positions=both(batch, "positions"),
    )
    return apart(found if found.ndim == 1 else at_last(found, segment_ids)), routed


def pairwise_reward(model: nn.Module, centering: float = 0.0, margins: bool = True) -> Loss:
    """The loss of a reward model over a `PairBatch`, see `pairwise_sums`.

    Args:
        model: has a method `score`: `[B, L]` of every token, or `[B]` of a text.
        centering: coefficient.
        margins: those of the batch count.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        scores, routed = pair_scores(model, variables, batch, rng)
        weights = batch["pair_weights"]
        sums = pairwise_sums(*scores, weights, batch["margins"] if margins else None, centering)
        return add_routing(sums, routed, row_weights(weights))

    return loss


def row_weights(pair_weights: jax.Array) -> jax.Array:
    """Weights `[2B, 1]` of the rows of `both`, which add up to those of the pairs."""
    return jnp.repeat(pair_weights / 2.0, 2)[:, None]
