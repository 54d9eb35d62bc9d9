"""Learning from rewards in groups: GRPO, its variants, and RLOO.

    hllm train configs/grpo/tiny.yaml train.steps=100

Each update of the run is an iteration: `train.batch_size` prompts, `rollout.group` answers to each, a score
for every answer, and `rollout.epochs` · `rollout.minibatches` steps of the optimizer on what an answer is
worth beside the others to its prompt. There is no value model. With `lora:` the reference is the base without
adapters; without, a copy of the first weights, where the KL to it is wanted at all. Scores come from a Python
function or from a reward model on the devices.
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
from hllm_jax.rl.config import GRPOConfig, RolloutConfig, check_rl_sections
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
    """

    recipe: str = "grpo"
    base: str | None = None
    reward_base: str | None = None
    run: RunConfig
    model: ModelConfig
    lora: LoRAConfig | None = None
    data: DataConfig = DataConfig(packing="none", overlong="drop")
    prompts: PromptConfig = PromptConfig()
    reward: RewardConfig
    rollout: RolloutConfig = RolloutConfig(group=8)
    grpo: GRPOConfig = GRPOConfig()
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(peak=1e-5)
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig(best=None)
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = "ddp"
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self) -> None:
        if self.model.load is None:
            raise Invalid(("model.load", "a policy starts from a model: a run folder, a file or a name"))
        if self.reward_base is not None and self.reward.kind != "model":
            raise Invalid(("reward_base", f"trains a reward model, and reward.kind is {self.reward.kind}"))
        if self.reward.kind == "model" and self.lora is not None and self.lora.dora:
            raise Invalid(("lora.dora", "is not possible where one base serves a reward model too"))
        check_sections(self.model, self.train, self.schedule, lora=self.lora)
        check_rl_sections(self.rollout, self.train, self.model, self.data, self.lora, grouped=True)


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
    `reward` nor the reward model `scorer`, and takes the latter to be like the policy."""
    has_model, reference = config.reward.kind == "model", config.grpo.needs_reference
    roles = rl.make_roles(None, model, config.lora, has_model, scorer, reference)
    if reward is None:
        nothing = rl.DeviceReward(lambda variables, tokens, segment_ids: segment_ids[:, 0])
        reward = rl.DeviceReward(functools.partial(rl.reward_scores, roles)) if has_model else nothing
    optimizer = training.make_optimizer(config.optimizer, config.schedule, steps)
    layout = parallel.Layout(
        mesh,
        parallel.make_rules(config.strategy),
        model,
        optimizer,
        trainable=roles.trainable,
        adapters=config.lora,
        variables=roles.variables,
    )
    vocab = vocab or model.config.vocab_size
    experience, loss = rl.make_grpo(model, config.grpo, config.rollout, vocab, config.train.logit_chunks)
    iteration = rl.Iteration(
        model,
        layout,
        optimizer,
        config.rollout,
        prompts=config.train.batch_size,
        stop_ids=stop_ids,
        vocab=vocab,
        reward=reward,
        experience=experience,
        loss=loss,
        accumulation=config.train.accumulation,
        reduce_dtype=config.train.reduce_dtype,
        kl_limit=config.grpo.kl_limit,
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
            roles, layout, config.run.seed, params, reward=scorer, read=run.base
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

        # ---- train: what is sampled (a third of a step) is read by two more; one learns from it every epoch
        flops = model.config.flops_per_token(config.rollout.length, frozen=config.lora is not None)
        readers = 1 + config.grpo.needs_reference + (scorer is not None)
        passes = config.rollout.epochs + readers / 3
        return training.train(run, state, step, prompts, layout, steps, hooks, passes * flops)
