"""Log-probabilities and entropies of the distribution that was sampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.objectives.chunks import map_parts
from hllm_jax.objectives.language_model import cross_entropy, is_target, pick

#: Ids of a vocabulary whose terms are added one after another.
STRETCH = 256


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
    return Likelihood(*_log_prob_and_entropy(logits.astype(jnp.float32) / temperature, targets))


@jax.custom_vjp
def _log_prob_and_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of float32 `[..., V]`, forwards and backwards written out: one sweep over the vocabulary each.

    With c = logits - max, Z = Σ exp(c) and M = Σ exp(c)·c: log p(v) = c_v - log Z, H = log Z - M / Z, and

        d log p(t) / d logits_v = [v = t] - p_v          d H / d logits_v = -p_v·(log p_v + H)
    """
    return _forward(logits, targets)[0]


def _forward(
    logits: jax.Array, targets: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    best = jnp.max(logits, axis=-1)
    # Both sums in one sweep. XLA on CPU adds such pairs one by one, which over 50,000 ids is off by 1e-4: so
    # stretches first.
    stretches = logits.reshape(*logits.shape[:-1], -1, math.gcd(logits.shape[-1], STRETCH))
    centred = stretches - best[..., None, None]
    weights = jnp.exp(centred)
    zero = np.float32(0)
    sums = jax.lax.reduce((weights, weights * _finite(centred)), (zero, zero), _add, (logits.ndim,))
    total, moment = (jnp.sum(parts, axis=-1) for parts in sums)
    log_total = jnp.log(total)
    entropy = log_total - moment / total
    return (pick(logits, targets) - best - log_total, entropy), (logits, targets, best, log_total, entropy)


def _backward(
    saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None]:
    logits, targets, best, log_total, entropy = saved
    of_log_prob, of_entropy = cotangents
    log_p = (logits - jnp.expand_dims(best, -1)) - jnp.expand_dims(log_total, -1)
    shared = jnp.expand_dims(of_log_prob + of_entropy * entropy, -1)
    spread = jnp.exp(log_p) * (shared + jnp.expand_dims(of_entropy, -1) * _finite(log_p))
    return jnp.where(is_target(logits, targets), jnp.expand_dims(of_log_prob, -1), 0.0) - spread, None


_log_prob_and_entropy.defvjp(_forward, _backward)


def _add(sums: tuple[Any, ...], more: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a + b for a, b in zip(sums, more, strict=True))


def _finite(log_p: jax.Array) -> jax.Array:
    """With 0 for -inf, which multiplies a probability of 0."""
    return jnp.where(log_p > -jnp.inf, log_p, 0.0)


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

    def of_part(x: jax.Array, targets: jax.Array) -> Likelihood:
        return likelihood(head(x), targets, temperature)

    return map_parts(of_part, (x, targets), chunks)


def chunked_log_probs(
    x: jax.Array, head: Callable[[jax.Array], jax.Array], targets: jax.Array, chunks: int = 1
) -> jax.Array:
    """Log-probabilities alone, at temperature 1, float32 `[B, L]`; else as `chunked_likelihood`.

    Without the entropy, which a program with a gradient keeps and one without drops, policy and reference
    round alike: DPO begins at ln 2 exactly.

    Raises:
        ValueError: `chunks` does not divide L.
    """

    def of_part(x: jax.Array, targets: jax.Array) -> jax.Array:
        return -cross_entropy(head(x).astype(jnp.float32), targets)[0]

    return map_parts(of_part, (x, targets), chunks)
