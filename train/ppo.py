"""PPO: a model answers prompts, and learns from what its answers are worth.

    hllm train configs/ppo/tiny.yaml train.steps=10

An iteration of the loop is a rollout, its scores, advantages, and `rollout.epochs` x `rollout.minibatches`
updates of the policy and of the value model (`rl/iteration.py`, `rl/ppo.py`). Scores come from a reward model
on the devices, or from a Python function (`reward`). With `lora:` one base in memory is policy, reference,
value and reward model; without, each is a model of its own.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from hllm_jax import generation, parallel, rl, training
from hllm_jax.config import Invalid, config
from hllm_jax.data.config import DataConfig
from hllm_jax.data.prompts import PromptConfig
from hllm_jax.models.config import LoRAConfig, ModelConfig
from hllm_jax.parallel.config import DistributedConfig, MeshConfig, Strategy
from hllm_jax.rl.config import RolloutConfig, check_rl_sections
from hllm_jax.rl.ppo_config import PPOConfig, check_ppo
from hllm_jax.rl.rewards.config import RewardConfig
from hllm_jax.training.config import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    check_sections,
)


@config
class Config:
    """Everything a run can be told.

    Attributes:
        base: config that trains `model.load`, if that is a run folder which is not there yet.
        reward_base: the same of `reward.path`, where that is a reward model.
        train: `batch_size` is prompts an iteration.
    """

    recipe: str = "ppo"
    base: str | None = None
    reward_base: str | None = None
    run: RunConfig
    model: ModelConfig
    lora: LoRAConfig | None = None
    data: DataConfig = DataConfig(packing="none", overlong="drop")
    prompts: PromptConfig = PromptConfig()
    reward: RewardConfig
    rollout: RolloutConfig = RolloutConfig(epochs=4)
    ppo: PPOConfig = PPOConfig()
    optimizer: OptimizerConfig = OptimizerConfig(betas=(0.9, 0.999), eps=1e-5, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(kind="linear", peak=1e-5, end=0.0)
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig(best=None)
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = "ddp"
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self) -> None:
        if self.model.load is None:
            raise Invalid(
                ("model.load", "PPO starts from a model that writes: a run folder, a file or a name")
            )
        if self.reward_base is not None and self.reward.kind != "model":
            raise Invalid(("reward_base", f"trains a reward model, and reward.kind is {self.reward.kind}"))
        check_sections(self.model, self.train, self.schedule, lora=self.lora)
        check_rl_sections(self.rollout, self.train, self.model, self.data, self.lora)
        check_ppo(self.ppo, self.reward.kind, self.lora)


def make_step(
    config: Config,
    model: Any,
    mesh: Any,
    steps: int,
    reward: Any = None,
    scorer: Any = None,
    stop_ids: tuple[int, ...] = (0,),
    vocab: int | None = None,
    **watching: Any,
) -> tuple[rl.Roles, parallel.Layout, rl.Iteration]:
    """Roles, layout and iteration on a mesh; a plan, which compiles it, has neither the Python function
    `reward` nor the reward model `scorer`, and takes the latter to be like the value model."""
    roles = rl.make_roles(config.ppo, model, config.lora, config.reward.kind == "model", scorer)
    optimizer = training.make_optimizer(config.optimizer, config.schedule, steps)
    layout = parallel.Layout(
        mesh,
        parallel.make_rules(config.strategy),
        model,
        optimizer,
        trainable=roles.trainable,
        adapters=config.lora,
        variables=roles.variables,
        control=rl.first_control(config.ppo),
    )
    vocab = vocab or model.config.vocab_size
    settings = config.ppo, config.rollout, vocab, config.train.logit_chunks
    iteration = rl.Iteration(
        model,
        layout,
        optimizer,
        config.rollout,
        prompts=config.train.batch_size,
        stop_ids=stop_ids,
        vocab=vocab,
        reward=reward or rl.DeviceReward(functools.partial(rl.reward_scores, roles)),
        experience=rl.make_experience(roles, *settings),
        loss=rl.make_loss(roles, *settings),
        accumulation=config.train.accumulation,
        reduce_dtype=config.train.reduce_dtype,
        kl_limit=config.ppo.kl_limit,
        adapt=rl.make_adapt(config.ppo.kl, config.train.batch_size * config.rollout.group),
        view=functools.partial(roles.view, "policy"),
        **watching,
    )
    return roles, layout, iteration


def main(config: Config) -> training.TrainState:
    """Train, or go on where the run folder stands."""
    # ---- the models to start from; run, tokenizer, policy ----
    training.make_base(config.model.load, config.base, config.distributed)
    training.make_base(config.reward.path, config.reward_base, config.distributed)
    run = training.Run.start(config)
    tokenizer, model, params = training.begin(run, config.model, adapters=config.lora)

    # ---- data: prompts[n] is a pure function of n ----
    shape: dict[str, Any] = {
        "batch_size": config.train.batch_size,
        "sequence_length": config.rollout.prompt_window,
        "seed": config.run.seed,
        "objective": config.prompts,
    }
    with run.coordinator_first("data"):
        prompts = config.data.build(tokenizer, epochs=config.train.epochs, **shape)
    steps = config.train.steps or len(prompts)
    run.identify(tokenizer=tokenizer, data=prompts, model=model.config)

    # ---- rewards, roles, and the iteration: shapes and shardings first, then arrays ----
    with contextlib.ExitStack() as open_rewards:
        reward, scorer = None, None
        if config.reward.kind == "model":
            scorer = rl.open_reward_model(config.reward.path, tokenizer, config.model, config.lora)
        else:
            function = open_rewards.enter_context(config.reward.build())
            reward = rl.HostReward(function, tokenizer, prompts.record)
        table = rl.RolloutTable(run.folder, run.resumed or 0)
        roles, layout, step = make_step(
            config,
            model,
            parallel.make_mesh(config.mesh, config.strategy),
            steps,
            reward,
            scorer,
            tokenizer.stop_ids,
            tokenizer.vocab_size,
            save=run.save,
            watch=rl.record_in(table, tokenizer, prompts.record),
        )
        state = run.restore(layout) or rl.begin_roles(
            roles, layout, config.run.seed, params, config.ppo.value_init, scorer, run.base
        )

        # ---- beside training: save first, then what may fail ----
        hooks = [table.hook(config.checkpoint.every), training.save(run, config.checkpoint.every)]
        if config.eval.every != 0:
            with run.coordinator_first("held-out data"):
                held_out = config.data.build(tokenizer, epochs=None, split="validation", **shape)
            asked = [held_out[n] for n in range(config.eval.batches)]
            measure = functools.partial(step.measure, batches=asked, record=held_out.record)
            hooks.append(training.evaluate(run, measure, config.eval.every))
        if (samples := config.log.samples).prompts:
            write = generation.sample_writer(model, tokenizer, samples, of=rl.policy_of)
            hooks.append(training.sample(run, write, samples.every))
        hooks += [training.profile(run, config.train.profile), *training.track(run, config.log)]

        # ---- train: what is sampled (a third of a step) is read by three; two learn from it every epoch ----
        flops = model.config.flops_per_token(config.rollout.length, frozen=config.lora is not None)
        passes = 2 * config.rollout.epochs + (3 + (scorer is not None)) / 3
        return training.train(run, state, step, prompts, layout, steps, hooks, passes * flops)
