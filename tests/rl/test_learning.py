"""A proof that cannot be faked: tasks whose optimum is known are learned from every seed, and with the sign
of the reward turned they are not."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from hllm_jax.models.config import Execution
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.layout import init_variables
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.parallel import Layout, make_mesh, make_rules
from hllm_jax.rl import DeviceReward, GRPOConfig, Iteration, RolloutConfig, make_grpo
from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer

VOCAB, STOP, PROMPTS = 16, 1, 16


def bandit(variables: Any, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """One token after the prompt; it is worth its number. The best is the last of the vocabulary, 1."""
    return tokens[:, 3].astype(jnp.float32) / (VOCAB - 1)


def copying(variables: Any, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The share of three tokens that were said again in their order; at best 1."""
    said = (tokens[:, 3:6] == tokens[:, :3]) & (segment_ids[:, 3:6] == 1)
    return jnp.mean(said.astype(jnp.float32), axis=1)


TASKS: dict[str, tuple[Any, RolloutConfig, float, int]] = {
    "bandit": (bandit, RolloutConfig(group=8, prompt_window=3, max_tokens=1), 1e-2, 30),
    "copy": (
        copying,
        RolloutConfig(group=16, prompt_window=3, max_tokens=3, epochs=2, minibatches=2),
        4e-3,
        60,
    ),
}


METHODS = {
    "grpo": GRPOConfig(),
    "rloo": GRPOConfig(loss="rloo"),
    "best_of_n": GRPOConfig(loss="best_of_n"),
}


class Learner:
    """A task and its method, compiled once and learned from as many seeds as are wanted."""

    def __init__(self, task: str, method: str) -> None:
        function, settings, peak, self.steps = TASKS[task]

        def reward(variables: Any, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
            return variables["control"]["sign"] * function(variables, tokens, segment_ids)

        spec = DecoderConfig(vocab_size=VOCAB, layers=1, embed=32, heads=2, kv_heads=2, mlp=64, max_length=8)
        model = Decoder(spec, Execution(dtype="float32"))
        self.draw = jax.jit(lambda key: meta.unbox(init_variables(model, key)))
        constant = ScheduleConfig(kind="constant", peak=peak, warmup=0)
        optimizer = make_optimizer(OptimizerConfig(weight_decay=0.0), constant, self.steps)
        mesh = make_mesh(None, "ddp", jax.devices()[:1])
        self.layout = Layout(mesh, make_rules("ddp"), model, optimizer, control={"sign": 1.0})
        experience, loss = make_grpo(model, METHODS[method], settings, VOCAB)
        self.iteration = Iteration(
            model,
            self.layout,
            optimizer,
            settings,
            prompts=PROMPTS,
            stop_ids=(STOP,),
            vocab=VOCAB,
            reward=DeviceReward(reward),
            experience=experience,
            loss=loss,
        )

    def learn(self, seed: int, sign: float = 1.0) -> list[float]:
        """The mean reward of each iteration, without its sign; prompts are never the same."""
        state, rewards = self.layout.init(seed, self.draw(jax.random.key(seed))["params"]), []
        state = state.replace(control={"sign": jax.device_put(np.float32(sign), state.step.sharding)})
        rng = np.random.default_rng(seed)
        for _ in range(self.steps):
            batch = {
                "tokens": rng.integers(2, 6, (PROMPTS, 3)).astype(np.int32),
                "lengths": np.full(PROMPTS, 3, np.int32),
                "records": np.arange(PROMPTS, dtype=np.int32),
            }
            state, metrics = self.iteration(state, self.layout.put(batch))
            rewards.append(sign * float(metrics["reward"]))
        assert self.iteration.compilations == 1
        return rewards


@functools.cache
def learner(task: str, method: str) -> Learner:
    return Learner(task, method)


def test_a_bandit_is_learned() -> None:
    rewards = learner("bandit", "grpo").learn(0)
    assert rewards[0] < 0.7
    assert np.mean(rewards[-3:]) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"), [("bandit", "grpo"), ("copy", "grpo"), ("copy", "rloo"), ("copy", "best_of_n")]
)
def test_five_seeds_of_five_reach_the_optimum_and_none_with_the_sign_turned(task: str, method: str) -> None:
    found = learner(task, method)
    reached = [np.mean(found.learn(seed)[-3:]) for seed in range(5)]
    assert min(reached) >= 0.95, reached
    turned = [np.mean(found.learn(seed, sign=-1.0)[-3:]) for seed in range(5)]
    assert max(turned) < 0.5, turned
