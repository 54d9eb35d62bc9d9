"""A reward model: a score for a text, learned from which of two answers people preferred.

    hllm train configs/reward/tiny.yaml train.steps=100

As `sft.py`, but for four things: records are pairs of answers; a head that gives one number stands where the
head of the next token stood; the loss is that of Bradley and Terry; and what is measured beside training are
the accuracy on held-out pairs, the margins, and how well they are calibrated, beside the rule that the longer
answer is the better one.
"""

from __future__ import annotations

from typing import Any

from hllm_jax import evals, objectives, parallel, training
from hllm_jax.config import Invalid, config
from hllm_jax.data.config import DataConfig
from hllm_jax.data.preference_config import PairDataConfig, check_pairs
from hllm_jax.models.config import LoRAConfig, ModelConfig
from hllm_jax.models.spec import Spec
from hllm_jax.parallel.config import DistributedConfig, MeshConfig, PipelineConfig, Strategy
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
class RewardModelConfig:
    """The loss.

    Attributes:
        centering: draws the mean of the scores to 0 (Eisenstein et al. 2023: 0.01).
        margins: the chosen answer is to be better by the margin of its record (Touvron et al. 2023, eq. 2).
    """

    centering: float = 0.0
    margins: bool = True

    def __post_init__(self) -> None:
        Invalid.check([(self.centering < 0, "centering", f"{self.centering}: 0 or more")])


@config
class Config:
    """Everything a run can be told.

    Attributes:
        base: config that trains `model.load`, if that is a run folder which is not there yet.
    """

    recipe: str = "reward"
    base: str | None = None
    run: RunConfig
    model: ModelConfig
    lora: LoRAConfig | None = None
    pairs: PairDataConfig = PairDataConfig()
    reward: RewardModelConfig = RewardModelConfig()
    data: DataConfig = DataConfig(packing="none")
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(kind="linear", peak=1e-5, warmup=0.05, end=0.0)
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = "ddp"
    pipeline: PipelineConfig = PipelineConfig()
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self) -> None:
        if self.model.load is None:
            raise Invalid(
                ("model.load", "a reward model starts from a model: a run folder, a file or a name")
            )
        if self.train.logit_chunks > 1:
            raise Invalid(("train.logit_chunks", "is not used: a reward model has no logits"))
        check_sections(self.model, self.train, self.schedule, lora=self.lora)
        check_pairs(self.data, self.pairs, "a reward model")


def make_head(config: Config, spec: Spec) -> Spec:
    """The architecture that is trained: that of `model.load` with a head for a score."""
    del config
    return training.with_score(spec)


def make_step(
    config: Config, model: Any, mesh: Any, steps: int
) -> tuple[objectives.Loss, parallel.Layout, training.TrainStep]:
    """Objective, layout and train step on a mesh; `hllm plan` compiles it for devices that are not here."""
    loss = objectives.pairwise_reward(model, config.reward.centering, config.reward.margins)
    optimizer = training.make_optimizer(config.optimizer, config.schedule, steps)
    rules = parallel.make_rules(config.strategy)
    layout = parallel.Layout(mesh, rules, model, optimizer, adapters=config.lora, pipeline=config.pipeline)
    layout.check_batch(config.train.batch_size, config.train.accumulation)
    step = training.make_train_step(
        loss, optimizer, layout, config.train.accumulation, config.train.reduce_dtype
    )
    return loss, layout, step


def main(config: Config) -> training.TrainState:
    """Train, or go on where the run folder stands."""
    # ---- the model to start from; run, tokenizer, model with the new head ----
    training.make_base(config.model.load, config.base, config.distributed)
    run = training.Run.start(config)
    tokenizer, model, params, fresh = training.begin_with_head(
        run, config.model, lambda spec: make_head(config, spec), config.lora
    )

    # ---- data: batches[n] is a pure function of n ----
    shape: dict[str, Any] = {
        "objective": config.pairs,
        "batch_size": config.train.batch_size,
        "sequence_length": config.train.sequence_length,
        "seed": config.run.seed,
    }
    with run.coordinator_first("data"):
        batches = config.data.build(tokenizer, epochs=config.train.epochs, **shape)
    steps = config.train.steps or len(batches)
    run.identify(tokenizer=tokenizer, data=batches, model=model.config)

    # ---- the step: shapes and shardings first, then arrays ----
    mesh = parallel.make_mesh(config.mesh, config.strategy)
    loss, layout, step = make_step(config, model, mesh, steps)
    state = run.restore(layout) or layout.init(config.run.seed, params, fresh)

    # ---- beside training: save first, then what may fail ----
    hooks = [training.save(run, config.checkpoint.every)]
    if config.eval.every != 0:
        with run.coordinator_first("held-out data"):
            held_out = config.data.build(tokenizer, epochs=1, split="validation", **shape)
        note = run.lines("pairs.jsonl").write
        measure = evals.make_pair_evaluation(loss, layout, held_out, config.eval.batches, note=note)
        hooks.append(training.evaluate(run, measure, config.eval.every))
    hooks += [training.profile(run, config.train.profile), *training.track(run, config.log)]

    # ---- train ----
    flops = model.config.flops_per_token(config.train.sequence_length, frozen=config.lora is not None)
    return training.train(run, state, step, batches, layout, steps, hooks, flops)
