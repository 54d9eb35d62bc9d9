"""Log-probabilities and entropies of the distribution that was sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hllm_jax.objectives.chunks import map_parts
from hllm_jax.objectives.language_model import cross_entropy


class Likelihood(NamedTuple):
    """Of the tokens of rows, float32 `[B, L]` each.

    Attributes:
        log_probs: log p(token | what comes before it).
        entropy: of that distribution, in nats.
    """

    log_probs: jax.Array
    entropy: jax.Array


def likelihood(logits: jax.Array, targets: jax.Array, temperature: float = 1.0) -> Likelihood:
    """Log-probabilities of the targets, and entropies.

        p = softmax(logits / T)          entropy = log Z - Σ_v p(v)·logits(v)/T

    Sampled at temperature T, an answer has the log-probabilities of T: those of 1 belong to a policy that
    never acted, and their ratio is not 1 on fresh samples. By hand: logits (0, ln 3) are (1/4, 3/4) at T = 1
    with entropy 0.56234; at T = 1/2 they are (0.1, 0.9) with entropy 0.32508.

    Args:
        logits: `[..., V]`; -inf is a token that the sampler had ruled out.
        targets: int `[...]`.
        temperature: of the sampler, larger than 0.

    Raises:
        ValueError: a temperature that is not larger than 0.
    """
    if not temperature > 0:
        raise ValueError(
            f"log-probabilities at temperature {temperature} do not exist: greedy answers have no ratio; "
            "sample at a temperature larger than 0"
        )
    scaled = logits.astype(jnp.float32) / temperature
    nll, log_z = cross_entropy(scaled, targets)
    p = jnp.exp(scaled - jnp.expand_dims(log_z, -1))
    possible = jnp.where(scaled > -jnp.inf, scaled, 0.0)
    return Likelihood(-nll, log_z - jnp.sum(p * possible, axis=-1))


def chunked_likelihood(
    x: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    temperature: float = 1.0,
    chunks: int = 1,
) -> Likelihood:
    """`likelihood(head(x), targets, temperature)` without all logits in memory.

    Args:
        x: `[B, L, D]`.
        head: part of it to logits.
        targets: int `[B, L]`.
        temperature: of the sampler.
        chunks: divides L; `[B, L / chunks, V]` is the most that is held at once.

    Raises:
        ValueError: it does not divide L.
    """
    if chunks == 1:
        return likelihood(head(x), targets, temperature)

    def of_part(x: jax.Array, targets: jax.Array) -> Likelihood:
        return likelihood(head(x), targets, temperature)

    return map_parts(of_part, (x, targets), chunks)
