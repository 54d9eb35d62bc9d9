"""Token rewards and GAE by hand and by definition, groups by hand, and what must not change them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import advantages, groups
from hllm_jax.objectives.advantages import clip_scores, truncation_policy
from hllm_jax.objectives.kl import kl_estimate

# Compiled once each, not operation by operation.
gae = jax.jit(advantages.gae)
token_rewards = jax.jit(advantages.token_rewards, static_argnames="estimator")
group_advantages = jax.jit(groups.group_advantages, static_argnames="scale")
leave_one_out, degenerate_groups = jax.jit(groups.leave_one_out), jax.jit(groups.degenerate_groups)
best_of_group = jax.jit(groups.best_of_group)

#: The row of the docstring of `gae`: a prompt token, three actions and a pad.
ACTIONS = np.asarray([[0, 1, 1, 1, 0]])
KL = np.asarray([[9.0, 0.5, -0.5, 1.0, 9.0]], np.float32)
VALUES = np.asarray([[9.0, 0.5, 0.25, 1.0, 9.0]], np.float32)


def test_score_and_gae_by_hand() -> None:
    """The table in the docstring of `gae`."""
    rewarded = token_rewards(np.ones(1), KL, np.zeros_like(KL), ACTIONS, 0.1)
    np.testing.assert_allclose(rewarded.kl, [[0, 0.5, -0.5, 1, 0]], atol=1e-7)
    np.testing.assert_allclose(rewarded.rewards, [[0, -0.05, 0.05, 0.9, 0]], atol=1e-7)
    found = gae(rewarded.rewards, VALUES, ACTIONS, gamma=1.0, lam=0.5)
    np.testing.assert_allclose(found.advantages, [[0, 0.075, 0.75, -0.1, 0]], atol=1e-6)
    np.testing.assert_allclose(found.returns, [[0, 0.575, 1.0, 0.9, 0]], atol=1e-6)


def by_definition(rewards: Any, values: Any, gamma: float, lam: float) -> np.ndarray:
    """Eq. 16 as it stands, over the actions of one answer: Σ_l (γλ)^l δ_{t+l}."""
    following = np.append(values[1:], 0.0)
    delta = rewards + gamma * following - values
    return np.asarray(
        [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]
    )


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (1.0, 1.0)])
def test_gae_is_its_definition_on_ragged_rows(gamma: float, lam: float) -> None:
    """Pads on both sides, tokens of a tool between actions, a row without any, a row that is full."""
    rng = np.random.default_rng(0)
    actions = np.asarray(
        [[0, 0, 1, 1, 1, 1, 0, 0], [1] * 8, [0] * 8, [0, 1, 1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1]]
    )
    rewards, values = rng.normal(size=(2, 5, 8)).astype(np.float32)
    found = gae(jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(actions), gamma, lam)
    for row, chosen in enumerate(actions == 1):
        wanted = by_definition(rewards[row, chosen], values[row, chosen], gamma, lam)
        np.testing.assert_allclose(found.advantages[row, chosen], wanted, atol=1e-5)
        np.testing.assert_allclose(found.returns[row, chosen], wanted + values[row, chosen], atol=1e-5)
    assert np.all(np.asarray(found.advantages)[actions == 0] == 0)
    assert np.all(np.asarray(found.returns)[actions == 0] == 0)


def test_pads_batch_mates_and_what_stands_on_them_change_no_bit() -> None:
    """0, 3 and 7 pads on the left; NaN on every position that is no action."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, 4)).astype(np.float32)

    def result(left: int, mate: float) -> np.ndarray:
        log_probs, reference, values = np.full((3, 2, 12), mate, np.float32)
        actions = np.zeros((2, 12), np.int32)
        for array, row in zip((log_probs, reference, values), rows, strict=True):
            array[0] = np.nan
            array[0, left : left + 4] = row
        actions[0, left : left + 4] = 1
        actions[1, 2:9] = 1
        scores = np.asarray([0.7, mate], np.float32)
        rewarded = token_rewards(scores, log_probs, reference, actions, 0.1)
        found = gae(rewarded.rewards, values, actions)
        return np.stack([each[0, left : left + 4] for each in (*rewarded, *found)])

    first = result(0, 0.0)
    assert np.all(np.isfinite(first))
    for left, mate in ((0, 5.0), (3, 0.0), (7, -2.0)):
        np.testing.assert_allclose(result(left, mate), first, atol=1e-6)
    np.testing.assert_array_equal(result(3, 0.0), result(3, 8.0))


def test_the_score_enters_exactly_once() -> None:
    actions = jnp.asarray([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    zeros = jnp.zeros((4, 4))
    rewards = token_rewards(jnp.asarray([1.0, 2.0, 3.0, 4.0]), zeros, zeros, actions, 0.3).rewards
    assert rewards.tolist() == [[0, 0, 0, 1], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_that_is_logged_is_the_one_that_is_subtracted(estimator: Any) -> None:
    rng = np.random.default_rng(2)
    log_probs, reference = (jnp.asarray(rng.normal(size=(2, 5)), jnp.float32) for _ in range(2))
    actions = jnp.asarray([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    rewarded = token_rewards(np.zeros(2), log_probs, reference, actions, 0.25, estimator=estimator)
    np.testing.assert_array_equal(rewarded.rewards, -0.25 * rewarded.kl)
    of_tokens = kl_estimate(log_probs, reference, estimator)
    np.testing.assert_array_equal(rewarded.kl, jnp.where(actions == 1, of_tokens, 0.0))


def test_truncated_answers() -> None:
    scores, actions = jnp.asarray([1.0, 2.0]), jnp.ones((2, 3))
    truncated = jnp.asarray([False, True])
    for policy, wanted, rows in (
        ("keep", [1.0, 2.0], [1, 1]),
        ("mask", [1.0, 2.0], [1, 0]),
        ("penalise", [1.0, 1.5], [1, 1]),
        ("replace", [1.0, 0.5], [1, 1]),
    ):
        found, left = truncation_policy(scores, actions, truncated, policy, 0.5)
        assert found.tolist() == wanted, policy
        assert left[:, 0].tolist() == rows, policy
    unknown: Any = "drop"
    with pytest.raises(ValueError, match="choose one of keep, mask, penalise, replace"):
        truncation_policy(scores, actions, truncated, unknown)


def test_scores_are_clipped_where_it_is_said() -> None:
    scores = jnp.asarray([-7.0, 0.5, 7.0])
    assert clip_scores(scores, 5.0).tolist() == [-5.0, 0.5, 5.0]
    assert clip_scores(scores, None).tolist() == [-7.0, 0.5, 7.0]


def test_groups_by_hand() -> None:
    rewards = jnp.asarray([[1.0, 0.0, 0.0, 1.0]])
    found = group_advantages(rewards)
    np.testing.assert_allclose(found, [[0.8658754, -0.8658754, -0.8658754, 0.8658754]], rtol=1e-6)
    assert group_advantages(rewards, scale="none").tolist() == [[0.5, -0.5, -0.5, 0.5]]
    assert leave_one_out(jnp.asarray([[3.0, 0.0, 0.0]])).tolist() == [[3.0, -1.5, -1.5]]
    assert best_of_group(jnp.asarray([[0.0, 3.0, 3.0]])).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("reward", [0.0, 0.1, -1e6, 1e-30])
def test_equal_rewards_teach_nothing(reward: float) -> None:
    """Seven times 0.1 has a mean that is not 0.1 in float32."""
    rewards = np.full((2, 7), reward, np.float32)
    of_std, of_none = group_advantages(rewards), group_advantages(rewards, scale="none")
    for found in (of_std, of_none, leave_one_out(rewards), best_of_group(rewards)):
        assert np.all(np.asarray(found) == 0)
    assert [float(x) for x in degenerate_groups(rewards)] == [2, 2]


def test_answers_that_are_left_out_shift_nothing() -> None:
    """A group with one answer left out is the group of the others; with one left it teaches nothing."""
    rewards = jnp.asarray([[1.0, 5.0, 2.0, jnp.nan], [1.0, 5.0, jnp.nan, jnp.nan], [jnp.nan, 1.0, 2.0, 3.0]])
    weights = jnp.asarray([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    alone = jnp.asarray([[1.0, 5.0, 2.0]])
    for of in (group_advantages, leave_one_out, best_of_group):
        found = of(rewards, weights=weights)
        np.testing.assert_array_equal(found[0, :3], of(alone)[0])
        assert np.all(np.asarray(found)[1:] == 0)
        assert float(found[0, 3]) == 0
    assert [float(x) for x in degenerate_groups(rewards, weights)] == [1, 2]


def test_groups_of_one_are_refused() -> None:
    for of in (group_advantages, leave_one_out, best_of_group, degenerate_groups):
        with pytest.raises(ValueError, match="two answers or more"):
            of(jnp.zeros((4, 1)))
    unknown: Any = "mad"
    with pytest.raises(ValueError, match="choose one of std, none"):
        group_advantages(jnp.zeros((1, 2)), scale=unknown)
