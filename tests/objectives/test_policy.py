"""PPO and GRPO by hand: clips, values, and what each variant divides by."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import mean, policy
from hllm_jax.objectives.policy import DENOMINATORS, ppo_sums, surrogate

# Compiled once each, not operation by operation.
grpo_sums = jax.jit(policy.grpo_sums, static_argnames=("variant", "length", "beta", "clip_high", "dual_clip"))
ppo_policy_sums = jax.jit(policy.ppo_policy_sums, static_argnames=("clip", "clip_high"))
value_sums = jax.jit(policy.value_sums, static_argnames="clip")
rloo_sums = jax.jit(policy.rloo_sums)
LN = np.log


def test_the_surrogate_by_hand() -> None:
    ratio = np.asarray([1.5, 1.5, 0.5, 0.5, 1.1, 4.0])
    advantages = np.asarray([2.0, -2.0, -2.0, 2.0, 2.0, -2.0])
    objective, clipped = surrogate(jnp.asarray(LN(ratio)), jnp.asarray(advantages))
    np.testing.assert_allclose(objective, [2.4, -3, -1.6, 1, 2.2, -8], rtol=1e-6)
    assert clipped.tolist() == [True, False, True, False, False, False]
    higher, _ = surrogate(jnp.asarray(LN(ratio)), jnp.asarray(advantages), 0.2, 0.28)
    np.testing.assert_allclose(higher, [2.56, -3, -1.6, 1, 2.2, -8], rtol=1e-6)
    dual, _ = surrogate(jnp.asarray(LN(ratio)), jnp.asarray(advantages), dual_clip=3.0)
    np.testing.assert_allclose(dual, [2.4, -3, -1.6, 1, 2.2, -6], rtol=1e-6)
    with pytest.raises(ValueError, match="larger than 1"):
        surrogate(jnp.zeros(1), jnp.zeros(1), dual_clip=1.0)


def test_ppo_by_hand() -> None:
    """Ratios 1.5 and 1.1 with A = 2, a row that is left out: -(2.4 + 2.2)/2 = -2.3; half is clipped."""
    new, old = np.asarray([[LN(1.5), LN(1.1), 9], [5, 5, 5]], np.float32), np.zeros((2, 3), np.float32)
    weights, advantages = np.asarray([[1, 1, 0], [0, 0, 0]]), np.full((2, 3), 2, np.float32)
    found = mean(ppo_policy_sums(new, old, advantages, weights))
    np.testing.assert_allclose(found["loss"], -2.3, rtol=1e-6)
    np.testing.assert_allclose(found["ratio"], 1.3, rtol=1e-6)
    assert float(found["clipped"]) == 0.5
    k3 = (1.5 - 1 - LN(1.5) + 1.1 - 1 - LN(1.1)) / 2
    np.testing.assert_allclose(found["old_kl"], k3, rtol=1e-5)


def test_fresh_samples_have_ratio_one_and_the_plain_policy_gradient() -> None:
    rng = np.random.default_rng(0)
    log_probs, advantages = rng.normal(size=(2, 3, 4)).astype(np.float32)
    weights = np.asarray([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], np.float32)

    def loss(new: jax.Array) -> tuple[jax.Array, Any]:
        sums = ppo_policy_sums(new, log_probs, advantages, weights)
        return mean(sums)["loss"], sums

    gradient, sums = jax.grad(loss, has_aux=True)(jnp.asarray(log_probs))
    np.testing.assert_allclose(gradient, -weights * advantages / 5, rtol=1e-6)
    found = mean(sums)
    assert (float(found["ratio"]), float(found["clipped"]), float(found["old_kl"])) == (1, 0, 0)


def test_values_by_hand() -> None:
    """V = 1, V_old = 0.5, clip 0.2: R = 0.8 gives 0.02, R = 1.1 gives 0.08 and is clipped."""
    values, old = np.full((1, 3), 1, np.float32), np.full((1, 3), 0.5, np.float32)
    returns, weights = np.asarray([[0.8, 1.1, 50]], np.float32), np.asarray([[1, 1, 0]])
    found = mean(value_sums(values, old, returns, weights))
    np.testing.assert_allclose(found["loss"], (0.02 + 0.08) / 2, rtol=1e-5)
    assert float(found["clipped"]) == 0.5
    plain = mean(value_sums(values, old, returns, weights, clip=None))
    np.testing.assert_allclose(plain["loss"], (0.02 + 0.005) / 2, rtol=1e-5)


def test_the_whole_of_ppo_has_one_denominator() -> None:
    weights = jnp.asarray([[1.0, 1.0, 0.0]])
    ones = jnp.ones((1, 3))
    policy_part = ppo_policy_sums(jnp.zeros((1, 3)), jnp.zeros((1, 3)), 3 * ones, weights)
    value_part = value_sums(2 * ones, 2 * ones, ones, weights)
    found = ppo_sums(policy_part, value_part, 0.7 * ones, weights, 0.1, 0.01)
    assert {float(bottom) for _, bottom in found.values()} == {2.0}
    means = mean(found)
    np.testing.assert_allclose(means["loss"], -3 + 0.1 * 0.5 - 0.01 * 0.7, rtol=1e-6)
    np.testing.assert_allclose(means["entropy"], 0.7, rtol=1e-6)


BY_HAND = {"grpo": 0.5, "dr_grpo": 0.5, "dapo": 1.25, "bnpo": 1.25}


@pytest.mark.parametrize("variant", list(DENOMINATORS))
def test_grpo_by_hand(variant: Any) -> None:
    """Answers of 1 and 3 tokens with advantages 1 and -2, and one that is left out, on fresh samples."""
    weights = np.asarray([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    same, advantages = np.full((3, 4), -1.5, np.float32), np.asarray([1.0, -2.0, 90.0], np.float32)
    found = mean(grpo_sums(same, same, advantages, weights, variant=variant, length=5))
    np.testing.assert_allclose(found["loss"], BY_HAND[variant], rtol=1e-6)


def test_the_kl_that_is_logged_is_in_the_loss() -> None:
    """Two tokens, reference above and below by ln 2: k3 = 2 - 1 - ln 2 and 1/2 - 1 + ln 2, mean 1/4."""
    same, weights = np.full((1, 2), -1.0, np.float32), np.ones((1, 2))
    reference = same + np.asarray([[LN(2), -LN(2)]], np.float32)
    found = mean(grpo_sums(same, same, np.zeros(1), weights, reference=reference, beta=0.04))
    np.testing.assert_allclose(found["kl"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(found["loss"], 0.04 * 0.25, rtol=1e-6)


def test_rloo_by_hand() -> None:
    """Log-ratios ln 1.1 and ln 1.2: 1.32, cut to 1.2. The second answer, A = -1, keeps its 1.32."""
    new = np.asarray([[LN(1.1), LN(1.2), 7], [LN(1.1), LN(1.2), 7], [7, 7, 7]], np.float32)
    weights = np.asarray([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    found = mean(rloo_sums(new, np.zeros_like(new), np.asarray([1.0, -1.0, 5.0], np.float32), weights))
    np.testing.assert_allclose(found["loss"], (-1.2 + 1.32) / 2, rtol=1e-5)
    assert float(found["clipped"]) == 0.5


def test_what_is_refused() -> None:
    row = jnp.zeros((1, 2))
    unknown: Any = "gspo"
    with pytest.raises(ValueError, match="choose one of grpo, dr_grpo, dapo, bnpo"):
        grpo_sums(row, row, row[:, 0], row, variant=unknown)
    with pytest.raises(ValueError, match="length of the longest answer"):
        grpo_sums(row, row, row[:, 0], row, variant="dr_grpo")
    with pytest.raises(ValueError, match="log-probs of the reference"):
        grpo_sums(row, row, row[:, 0], row, beta=0.1)
