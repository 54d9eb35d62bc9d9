"""How far two distributions over tokens are apart: exactly, from samples, and how strongly that is held back.

The KL that is trained and the KL that is logged come from the same functions, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

#: Estimators of KL from the log-probabilities of what was sampled.
Estimator: TypeAlias = Literal["k1", "k2", "k3"]

#: From the coefficient and the KL that was seen to the next coefficient, float32 scalars.
Controller: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def kl_divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p ‖ q) = Σ_v p(v)·(log p(v) - log q(v)), exactly, from logits.

    The forward KL of distillation is `kl_divergence(teacher, student)`, the reverse one
    `kl_divergence(student, teacher)`. A token that p cannot have (logit -inf) adds nothing.

    Args:
        p, q: logits, `[..., V]`; any constant may be added to a row.

    Returns:
        float32 `[...]`, 0 where both are the same.
    """
    log_p = jax.nn.log_softmax(p.astype(jnp.float32))
    log_q = jax.nn.log_softmax(q.astype(jnp.float32))
    possible = log_p > -jnp.inf
    ratio = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * ratio, axis=-1)


def kl_estimate(log_probs: jax.Array, reference: jax.Array, estimator: Estimator = "k1") -> jax.Array:
    """An estimate of KL(policy ‖ reference) for each sampled token (Schulman 2020, "Approximating KL").

        k1 = -log r          k2 = (log r)² / 2          k3 = r - 1 - log r          log r = reference - policy

    Over tokens from the policy, k1 and k3 are right in the mean; k2 is not, but is close for near
    distributions; k2 and k3 are never negative. As a *reward* k1 is what PPO subtracts (Ziegler et al. 2019,
    eq. 2). As a *loss* on fresh samples they differ: the mean gradient of k1 is 0, that of k2 is the gradient
    of KL(policy ‖ reference), and that of k3 (GRPO's) the gradient of KL(reference ‖ policy).

    By hand, for p = (3/4, 1/4) and q = (1/2, 1/2): KL = 3/4·ln 3/2 + 1/4·ln 1/2 = 0.13081. The tokens have
    k1 = (0.40547, -0.69315), k2 = (0.08220, 0.24023), k3 = (0.07213, 0.30685); in the mean over p
    0.13081, 0.12171, 0.13081.

    Args:
        log_probs: of the policy that sampled, `[...]`.
        reference: of the same tokens, `[...]`.
        estimator: by name.

    Returns:
        float32 `[...]`; 0 where both are the same.

    Raises:
        ValueError: no such estimator.
    """
    log_ratio = reference.astype(jnp.float32) - log_probs.astype(jnp.float32)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * jnp.square(log_ratio)
    if estimator == "k3":
        # expm1(x) - x: of numbers near 0, `exp(x) - 1 - x` would leave nothing but rounding.
        return jnp.expm1(log_ratio) - log_ratio
    raise ValueError(
        f"KL estimator {estimator!r} is not known; choose one of {', '.join(get_args(Estimator))}"
    )


def fixed_kl() -> Controller:
    """The coefficient stays (Ouyang et al. 2022: 0.02)."""
    return lambda coefficient, kl: coefficient


def adaptive_kl(target: float, gain: float = 0.1, limit: float = 0.2) -> Controller:
    """The coefficient follows a target (Ziegler et al. 2019, section 2.2).

        e = clip((kl - target) / target, -limit, limit)          β ← β·(1 + gain·e)

    By hand: target 6, β = 0.2, gain 0.1. KL 6.6 is 10 % too much, β becomes 0.2·1.01 = 0.202; KL 60 is cut to
    20 %, β becomes 0.2·1.02 = 0.204; KL 3 is cut to -20 %, β becomes 0.196.

    Args:
        target: KL of a whole answer (sum over its tokens) in nats, larger than 0.
        gain: K_β of the paper; in its code, samples of the iteration / horizon.
        limit: of the relative error.

    Returns:
        A function of the coefficient and the mean KL of whole answers; a KL that is not finite is refused by
        whoever calls it, for the next coefficient would not be either.

    Raises:
        ValueError: a target that is not larger than 0.
    """
    if not target > 0:
        raise ValueError(f"the target of the KL controller is {target}; it must be larger than 0 nats")

    def next_coefficient(coefficient: jax.Array, kl: jax.Array) -> jax.Array:
        error = jnp.clip((kl - target) / target, -limit, limit)
        return coefficient * (1.0 + gain * error)

    return next_coefficient
