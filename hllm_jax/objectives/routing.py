"""What is added to a loss so that the router of a mixture of experts uses all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.nn.config import Experts
from hllm_jax.nn.moe import ROUTING, Routing
from hllm_jax.objectives.sums import Sums, Variables


class Routed(NamedTuple):
    """What the mixtures of a model noted while a batch passed.

    Attributes:
        experts: of the model.
        sums: over the tokens of each row, in each layer: `[layers, B]` or `[layers, B, E]`.
    """

    experts: Experts
    sums: Routing


def apply_model(
    model: nn.Module, variables: Variables, rng: jax.Array | None, *arrays: Any, **options: Any
) -> tuple[Any, Routed | None]:
    """`model.apply`, and what its mixtures of experts noted; None where it has none.

    Args:
        model, variables: the module and its variables.
        rng: key of dropout; None: as in evaluation.
        arrays, options: of the call.
    """
    if rng is None:
        options["deterministic"] = True
    else:
        options |= {"deterministic": False, "rngs": {"dropout": rng}}
    experts: Experts | None = getattr(getattr(model, "config", None), "experts", None)
    if experts is None:
        return model.apply(variables, *arrays, **options), None
    output, noted = model.apply(variables, *arrays, mutable=[ROUTING], **options)
    layers = jax.tree.leaves(noted[ROUTING], is_leaf=lambda node: isinstance(node, Routing))
    return output, Routed(experts, _stacked(layers))


def load_balance(sums: Routing) -> jax.Array:
    """How unevenly experts are used (Fedus et al. 2022, eq. 4 to 6; for several experts a token, Mixtral's).

        E · Σ_e f_e · p_e,   f_e = how often e was chosen / tokens,   p_e = mean probability of e

    At its least, where all are used alike, it is the number of experts that a token passes. Only p has a
    gradient.

    Args:
        sums: over the tokens that are looked at together, `[…]` and `[…, E]`.

    Returns:
        float32 `[…]`; 0 where there is no token.
    """
    tokens = jnp.maximum(sums.tokens, 1.0)[..., None]
    return sums.chosen.shape[-1] * jnp.sum((sums.chosen / tokens) * (sums.probabilities / tokens), axis=-1)


def add_routing(sums: Sums, routed: Routed | None, weights: jax.Array) -> Sums:
    """The sums of a loss with those of its router.

        loss += load_balance · Σ_r w_r · b_r / Σ_r w_r + router_z_loss · Σ_r w_r · z_r / Σ_r w_r

    b_r is `load_balance` over the tokens of row r of the batch, z_r the mean over its tokens of the squared
    log-partition of the router (Zoph et al. 2022, eq. 5), both in the mean over layers; w_r is the sum of the
    weights of its targets. Each row is balanced by itself (a group of Lepikhin et al. 2020, section 2.2):
    a product of means over the whole batch would be another one in every split of it.

    Args:
        sums: of the objective, with the one denominator Σ w.
        routed: from `apply_model`; None changes nothing.
        weights: float `[B, L]`, of the targets.

    Returns:
        `sums`, its `loss` changed, with `nll` (the loss without the router's, unless there is one already),
        `load_balance`, `router_z` and, where experts have a capacity, `dropped` (share of choices).
    """
    if routed is None:
        return sums
    experts, noted = routed
    of_rows = jnp.sum(weights.astype(jnp.float32), axis=1)
    tokens = jnp.maximum(noted.tokens, 1.0)
    cost, total = sums["loss"]

    def weighted(of_layers: jax.Array) -> jax.Array:
        return jnp.sum(of_rows * jnp.mean(of_layers, axis=0))

    balance, z = weighted(load_balance(noted)), weighted(noted.log_z / tokens)
    added = {**sums, "nll": sums.get("nll", sums["loss"])}
    added["loss"] = (cost + experts.load_balance * balance + experts.router_z_loss * z, total)
    added |= {"load_balance": (balance, total), "router_z": (z, total)}
    if experts.capacity_factor is not None:
        added["dropped"] = (weighted(noted.dropped / tokens), total)
    return added


def _stacked(layers: list[Routing]) -> Routing:
    """The sums of one layer each, or of several that a scan has stacked, along one leading axis."""
    several = [each if each.tokens.ndim == 2 else Routing(*(x[None] for x in each)) for each in layers]
    return Routing(*(jnp.concatenate(parts) for parts in zip(*several, strict=True)))
