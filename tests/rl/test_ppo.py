"""PPO: what a rollout teaches, by hand; what must change nothing; and what it is paid for, it learns."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives.sums import mean
from hllm_jax.parallel.config import Strategy
from hllm_jax.parallel.state import flatten
from hllm_jax.rl import ppo
from hllm_jax.rl.config import RolloutConfig
from hllm_jax.rl.ppo_config import KLConfig, PPOConfig
from hllm_jax.rl.rollout import Rollout
from hllm_jax.training.checkpoints import Checkpoints
from hllm_jax.training.step import make_update
from tests.rl.ppo_world import LORA, SPEC, World, world

PLAIN = PPOConfig(kl=KLConfig(kind="fixed"), lam=0.5, whiten_advantages=False, truncation="keep")
TWO = RolloutConfig(prompt_window=2, max_tokens=2, epochs=2, minibatches=2)


def first_token(tokens: jax.Array, answers: jax.Array) -> jax.Array:
    """15 is worth 1, the others up to a half."""
    del tokens
    return jnp.where(answers[:, 0] == 15, 1.0, answers[:, 0] / 30)


def copied(tokens: jax.Array, answers: jax.Array) -> jax.Array:
    """The share of the prompt that the answer says again, place by place."""
    return jnp.mean((answers == tokens[:, : answers.shape[1]]).astype(jnp.float32), axis=1)


def by_hand(pads: int = 0, pad: int = 0) -> tuple[Rollout, jax.Array, jax.Array]:
    """A prompt of one token and two actions; a prompt of two and one action. Rollout, reference, values."""
    L = 3 + pads
    tokens = np.full((2, L), pad, np.int32)
    tokens[0, :3], tokens[1, :3] = (5, 1, 2), (5, 6, 3)
    rows = {name: np.zeros((2, L), np.float32) for name in ("actions", "log_probs", "reference", "values")}
    rows["actions"][0, 1:3] = 1
    rows["actions"][1, 2] = 1
    rows["log_probs"][0, 1:3] = -1, -2
    rows["log_probs"][1, 2] = -1
    rows["reference"][:, :] = 9  # of what was not sampled: without meaning
    rows["reference"][0, 1:3] = -1.5, -1
    rows["reference"][1, 2] = -1
    rows["values"][:, :] = 7
    rows["values"][0, 1:3] = 1, 0.5
    rows["values"][1, 2] = 0.25
    ended = np.array([True, False])
    lengths = np.array([3, 3], np.int32)
    rollout = Rollout(tokens, lengths, rows["actions"], rows["log_probs"], ended)
    return jax.tree.map(jnp.asarray, rollout), jnp.asarray(rows["reference"]), jnp.asarray(rows["values"])


def taught(
    config: PPOConfig, scores: Any = (5.0, 3.0), beta: float = 0.1, pads: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    rollout, reference, values = by_hand(pads)
    learn = functools.partial(ppo.to_learn, config, rollout)
    batch, sums = learn(jnp.asarray(scores, jnp.float32), reference, values, beta)
    return jax.tree.map(np.asarray, batch), {name: float(x) for name, x in mean(sums).items()}


def change(config: PPOConfig, **fields: Any) -> PPOConfig:
    return dataclasses.replace(config, **fields)


def test_advantages_and_returns_by_hand() -> None:
    batch, means = taught(change(PLAIN, score_shift=1.0, score_scale=2.0))
    # As in the docstring; the second row has one action, no KL and the score (3 - 1) / 2.
    np.testing.assert_allclose(batch["advantages"], [[0, 0.25, 1.6], [0, 0, 0.75]], atol=1e-6)
    np.testing.assert_allclose(batch["returns"], [[0, 1.25, 2.1], [0, 0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(batch["kl"], [-0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(batch["score"], [2, 1])
    np.testing.assert_array_equal(batch["begins"], [1, 2])
    assert means["kl"] == pytest.approx(-0.5 / 3)
    assert means["answer_kl"] == pytest.approx(-0.25)
    assert means["kl_coefficient"] == pytest.approx(0.1)


def test_the_score_enters_once_at_the_last_action() -> None:
    # γ = λ = 1: what follows an action is the sum of the rewards, so every action sees the score.
    config = change(PLAIN, gamma=1.0, lam=1.0)
    more, less = taught(config, (6.0, 3.0), 0.0)[0], taught(config, (5.0, 3.0), 0.0)[0]
    np.testing.assert_allclose(more["returns"] - less["returns"], [[0, 1, 1], [0, 0, 0]], atol=1e-6)
    config = change(PLAIN, gamma=0.0)
    assert taught(config, beta=0.0)[0]["returns"].tolist() == [[0, 0, 5], [0, 0, 3]]


@pytest.mark.parametrize(
    ("fields", "scores"),
    [
        ({"score_clip": 4.0}, [4, 3]),
        ({"truncation": "replace", "truncation_value": -1.0}, [5, -1]),
        ({"truncation": "penalise", "truncation_value": 2.0}, [5, 1]),
        ({"truncation": "mask"}, [5, 3]),
    ],
)
def test_what_becomes_of_scores(fields: dict[str, Any], scores: list[float]) -> None:
    batch, _ = taught(change(PLAIN, **fields))
    assert batch["score"].tolist() == scores
    assert batch["actions"].sum() == (2 if fields == {"truncation": "mask"} else 3)


def test_an_answer_without_a_score_is_left_out() -> None:
    batch, means = taught(change(PLAIN, whiten_advantages=True, whiten_rewards=True), (5.0, np.nan))
    assert all(np.isfinite(array).all() for array in batch.values())
    assert batch["actions"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert means["score"] == 5.0
    assert means["answer_kl"] == pytest.approx(-0.25)  # the KL is that of all that was sampled


def test_whitening() -> None:
    batch, _ = taught(change(PLAIN, whiten_advantages=True))
    held = batch["advantages"][batch["actions"] == 1]
    assert held.mean() == pytest.approx(0, abs=1e-6)
    assert held.std() == pytest.approx(1, abs=1e-4)
    # γ = 0: returns are the rewards, -0.05, 5.1 and 3; whitened, they keep their mean.
    returns = taught(change(PLAIN, gamma=0.0, whiten_rewards=True))[0]["returns"]
    rewards = np.array([-0.05, 5.1, 3.0])
    wanted = (rewards - rewards.mean()) / rewards.std() + rewards.mean()
    np.testing.assert_allclose(returns[batch["actions"] == 1], wanted, rtol=1e-4)


def test_all_equal_rewards_teach_nothing_and_are_finite() -> None:
    rollout, reference, _ = by_hand()
    values = jnp.full(reference.shape, 2.0)
    config = change(PLAIN, lam=1.0, whiten_advantages=True, whiten_rewards=True)
    batch, _ = ppo.to_learn(config, rollout, jnp.full((2,), 2.0), rollout.log_probs, values, 0.0)
    assert np.isfinite(batch["advantages"]).all()
    batch, _ = ppo.to_learn(
        change(config, whiten_rewards=False), rollout, jnp.full((2,), 2.0), rollout.log_probs, values, 0.0
    )
    np.testing.assert_array_equal(batch["advantages"], np.zeros((2, 3)))


KL = KLConfig(coefficient=0.1, target=0.5, horizon=80)  # 8 answers an iteration: a gain of 0.1

#: With adapters in the fast suite, whole models in the slow one: a world takes seconds to compile.
BOTH = [pytest.param(True, id="lora"), pytest.param(False, id="full", marks=pytest.mark.slow)]


@functools.cache
def learning(lora: bool) -> World:
    return world(first_token, TWO, lora=LORA if lora else None, kl=KL)


def test_pads_change_nothing() -> None:
    w = learning(True)
    state = w.begin()
    loss = ppo.make_loss(w.roles, w.config, TWO, SPEC.vocab_size)

    @jax.jit
    def means(variables: Any, rows: Any) -> dict[str, jax.Array]:
        rollout, reference, values = rows
        batch, _ = ppo.to_learn(w.config, rollout, jnp.asarray([5.0, 3.0]), reference, values, 0.1)
        return mean(loss(variables, batch, None))

    def of(pads: int, pad: int) -> dict[str, float]:
        return {name: float(x) for name, x in means(state.variables, by_hand(pads, pad)).items()}

    few = of(1, 0)
    assert few["value_loss"] > 0
    for pads, pad in ((4, 0), (1, 3)):  # 3 is a token of the answers too
        assert of(pads, pad) == pytest.approx(few, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_fresh_rollout_has_ratio_1_and_kl_0_and_without_a_learning_rate_nothing_changes(lora: bool) -> None:
    w = world(first_token, TWO, lr=0.0, lora=LORA if lora else None, kl=KLConfig(coefficient=0.1))
    state, rng = w.begin(), np.random.default_rng(0)
    before = jax.tree.map(np.asarray, (state.trainable, state.frozen))
    for step in range(50):
        state, metrics = w.iteration(state, w.batch(rng))
        assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-5)
        assert float(metrics["kl"]) == pytest.approx(0, abs=1e-5)
        assert int(state.step) == step + 1
    jax.tree.map(np.testing.assert_array_equal, before, (state.trainable, state.frozen))
    assert w.iteration.compilations == 1


@pytest.mark.parametrize("lora", BOTH)
def test_only_policy_and_value_model_are_trained(lora: bool) -> None:
    w = learning(lora)
    state = w.begin()
    before = jax.tree.map(np.asarray, flatten(state.variables))
    state, metrics = w.iteration(state, w.batch(np.random.default_rng(0)))
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-5)
    state, metrics = w.iteration(state, w.batch(np.random.default_rng(1)))
    assert metrics["skipped"] == 0
    assert abs(float(metrics["kl"])) > 1e-5
    after = flatten(state.variables)
    changed = {path for path, leaf in after.items() if not np.array_equal(before[path], leaf)}
    assert changed == {path for path in after if w.roles.trainable(path)}
    tops = {path[0] for path in changed}
    assert tops == ({"lora", "value"} if lora else {"params", "value"})
    assert ("value", "params", "score") in changed


def test_the_coefficient_follows_the_kl_once_an_iteration() -> None:
    w = learning(True)
    state, rng = w.begin(), np.random.default_rng(0)
    expected = np.float32(0.1)
    for _ in range(3):
        state, metrics = w.iteration(state, w.batch(rng))
        assert float(metrics["kl_coefficient"]) == pytest.approx(expected)
        error = np.clip((float(metrics["answer_kl"]) - 0.5) / 0.5, -0.2, 0.2)
        expected *= 1 + 0.1 * error
        assert float(state.control["kl_coefficient"]) == pytest.approx(expected)
    after = ppo.make_adapt(KL, 8)({"kl_coefficient": jnp.float32(0.3)}, {"answer_kl": jnp.float32(np.nan)})
    assert float(after["kl_coefficient"]) == pytest.approx(0.3)


def test_a_fixed_coefficient_is_that_of_the_config_whatever_a_resumed_state_says() -> None:
    w = world(first_token, TWO, lora=LORA, kl=KLConfig(kind="fixed", coefficient=0.3))
    state = w.begin()
    before = jax.device_put(np.float32(9.0), state.step.sharding)
    _, metrics = w.iteration(
        state.replace(control={"kl_coefficient": before}), w.batch(np.random.default_rng(0))
    )
    assert float(metrics["kl_coefficient"]) == pytest.approx(0.3)


@pytest.mark.parametrize("lora", BOTH)
def test_a_resumed_run_goes_on_exactly(lora: bool, tmp_path: Path) -> None:
    w = learning(lora)
    batches = [w.batch(np.random.default_rng(n)) for n in range(3)]
    state, _ = w.iteration(w.begin(), batches[0])
    base = {"base": {"load": "x"}} if lora else {}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, base)
    frozen = state.frozen
    for batch in batches[1:]:
        state, metrics = w.iteration(state, batch)
    again, manifest = Checkpoints(tmp_path).restore(w.layout, base=lambda put: frozen["params"])
    held = {name for name in manifest.arrays if name.startswith("frozen/")}
    assert any(name.startswith("frozen/params") for name in held) is False
    assert any(name.startswith("frozen/reference") for name in held) is not lora
    assert "optimizer/control/kl_coefficient" in manifest.arrays
    for batch in batches[1:]:
        again, resumed = w.iteration(again, batch)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert resumed["loss"] == metrics["loss"]


def gradient_step(accumulation: int, devices: int, strategy: Strategy = "ddp") -> dict[Any, np.ndarray]:
    """What one update of a fixed rollout makes of the weights of a seed."""
    settings = RolloutConfig(prompt_window=2, max_tokens=3)
    w = world(first_token, settings, 32, devices=devices, strategy=strategy, accumulation=accumulation)
    state, rng = w.begin(), np.random.default_rng(3)
    lengths = rng.integers(2, 6, 32)
    places = np.arange(5)[None, :]
    rows = {name: rng.normal(size=(32, 5)).astype(np.float32) for name in ("values", "advantages", "returns")}
    batch = w.layout.put(
        {
            "tokens": rng.integers(0, 16, (32, 5)).astype(np.int32),
            "lengths": lengths.astype(np.int32),
            "begins": np.full(32, 2, np.int32),
            "actions": ((places >= 2) & (places < lengths[:, None])).astype(np.float32),
            "log_probs": (-2.7 + 0.1 * rng.normal(size=(32, 5))).astype(np.float32),
            **rows,
        }
    )
    loss = ppo.make_loss(w.roles, w.config, settings, SPEC.vocab_size)
    update = make_update(loss, Plain(), w.layout, accumulation, jnp.float32)
    state, metrics = jax.jit(update)(state.replace(frozen={}), state.frozen, batch, jax.random.key(0))
    return {("loss",): np.asarray(metrics["loss"])} | jax.tree.map(np.asarray, flatten(state.trainable))


class Plain:
    """Gradient descent at rate 1: what comes out is what went in, less the gradient."""

    offload = False

    def schedule(self, step: jax.Array) -> jax.Array:
        return jnp.ones_like(step, jnp.float32)

    def update(self, gradients: Any, state: Any, params: Any, step: Any) -> tuple[Any, Any]:
        del step
        return jax.tree.map(jnp.subtract, params, gradients), state


@pytest.mark.slow
def test_any_split_of_a_rollout_gives_the_same_gradient() -> None:
    whole = gradient_step(1, 1)
    splits: tuple[tuple[int, int, Strategy], ...] = (
        (2, 1, "ddp"),
        (4, 1, "ddp"),
        (1, 8, "ddp"),
        (4, 8, "zero3"),
    )
    for split in splits:
        parts = gradient_step(*split)
        for path, leaf in whole.items():
            np.testing.assert_allclose(parts[path], leaf, rtol=1e-5, atol=1e-6, err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "settings", "prompts", "lr", "steps"),
    [
        (first_token, RolloutConfig(prompt_window=1, max_tokens=1, epochs=4, minibatches=2), 64, 1e-2, 30),
        (copied, RolloutConfig(prompt_window=2, max_tokens=2, epochs=4, minibatches=2), 128, 3e-3, 80),
    ],
    ids=["bandit", "copy"],
)
def test_it_learns_what_it_is_paid_for(
    score: Any, settings: RolloutConfig, prompts: int, lr: float, steps: int
) -> None:
    """Of 16 tokens one is worth 1 and no other more than a half; a copy of two symbols 1, by chance 1/16."""

    def run(sign: float, seeds: int) -> list[float]:
        w = world(
            lambda tokens, answers: sign * score(tokens, answers),
            settings,
            prompts,
            lr,
            value_coefficient=0.5,
            entropy_coefficient=0.01,
        )
        found = []
        for seed in range(seeds):
            state, rng, rewards = w.begin(seed), np.random.default_rng(seed), []
            for _ in range(steps):
                state, metrics = w.iteration(state, w.batch(rng, 4))
                rewards.append(sign * float(metrics["reward"]))
            found.append(float(np.mean(rewards[-5:])))
        return found

    assert min(run(1.0, 5)) >= 0.95
    assert max(run(-1.0, 1)) < 0.2
