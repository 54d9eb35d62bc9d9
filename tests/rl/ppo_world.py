"""A small PPO to test with: a model of one layer, its roles, and rewards that are a function of tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax.core import meta

from hllm_jax.models.config import Execution, LoRAConfig
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.layout import init_variables
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.parallel import Layout, make_mesh, make_rules
from hllm_jax.parallel.config import Strategy
from hllm_jax.parallel.state import TrainState
from hllm_jax.rl import ppo
from hllm_jax.rl.config import RolloutConfig
from hllm_jax.rl.iteration import Iteration
from hllm_jax.rl.ppo_config import KLConfig, PPOConfig
from hllm_jax.rl.rewarding import DeviceReward
from hllm_jax.rl.roles import Roles, begin_roles, make_roles
from hllm_jax.training import make_optimizer
from hllm_jax.training.config import OptimizerConfig, ScheduleConfig
from hllm_jax.training.optimizers import Optimizer

SPEC = DecoderConfig(
    vocab_size=16, layers=1, embed=32, heads=2, kv_heads=2, head_dim=16, mlp=64, max_length=16
)
LORA = LoRAConfig(rank=2, targets=("attention/*",))

#: `(tokens [B, L], answers [B, max_tokens]) -> [B]`
Score = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class World:
    """Everything of a run but its data."""

    config: PPOConfig
    settings: RolloutConfig
    prompts: int
    roles: Roles
    layout: Layout
    optimizer: Optimizer
    iteration: Iteration

    def begin(self, seed: int = 0) -> TrainState:
        """A new state; the policy's weights come from the seed too."""
        key = jax.random.key(100 + seed)
        params = meta.unbox(jax.jit(functools.partial(init_variables, self.roles.policy))(key))["params"]
        return begin_roles(self.roles, self.layout, seed, params, self.config.value_init)

    def batch(self, rng: np.random.Generator, symbols: int = 8) -> dict[str, jax.Array]:
        """Prompts of equal length."""
        P, W = self.prompts, self.settings.prompt_window
        batch = {
            "tokens": rng.integers(0, symbols, (P, W)).astype(np.int32),
            "lengths": np.full(P, W, np.int32),
            "records": np.arange(P, dtype=np.int32),
        }
        return self.layout.put(batch)


def world(
    score: Score,
    settings: RolloutConfig,
    prompts: int = 8,
    lr: float = 1e-2,
    lora: LoRAConfig | None = None,
    devices: int = 1,
    strategy: Strategy = "ddp",
    accumulation: int = 1,
    stop_ids: tuple[int, ...] = (),
    **config: Any,
) -> World:
    """A world; `config` are fields of `PPOConfig`."""
    config.setdefault("kl", KLConfig(kind="fixed", coefficient=0.0))
    config.setdefault("truncation", "keep")
    told = PPOConfig(**config)
    policy = Decoder(SPEC, Execution(dtype="float32"))
    roles = make_roles(told, policy, lora)
    optimizer = make_optimizer(
        OptimizerConfig(betas=(0.9, 0.999), eps=1e-5, weight_decay=0.0),
        ScheduleConfig(kind="constant", peak=lr, warmup=0),
        100,
    )
    layout = Layout(
        make_mesh(None, strategy, jax.devices()[:devices]),
        make_rules(strategy),
        policy,
        optimizer,
        trainable=roles.trainable,
        adapters=lora,
        variables=roles.variables,
        control=ppo.first_control(told),
    )

    def of_tokens(variables: Any, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
        del variables, segment_ids
        return score(tokens, tokens[:, settings.prompt_window :])

    iteration = Iteration(
        policy,
        layout,
        optimizer,
        settings,
        prompts=prompts,
        stop_ids=stop_ids,
        vocab=SPEC.vocab_size,
        reward=DeviceReward(of_tokens),
        experience=ppo.make_experience(roles, told, settings, SPEC.vocab_size),
        loss=ppo.make_loss(roles, told, settings, SPEC.vocab_size),
        accumulation=accumulation,
        adapt=ppo.make_adapt(told.kl, prompts * settings.group),
        view=functools.partial(roles.view, "policy"),
    )
    return World(told, settings, prompts, roles, layout, optimizer, iteration)
