"""Supervised fine-tuning: conversations in, a model that answers out.

    hllm train configs/sft/tiny.yaml train.steps=100

As `pretrain.py`, but for three things: the weights, the architecture and the tokenizer come from `model.load`
(made first, by the config `base`, where they are not there yet); conversations are packed whole; and what is
trained are the spans that the chat template gives to the assistant.
"""

from __future__ import annotations

from typing import Any

from hllm_jax import generation, objectives, parallel, training
from hllm_jax.config import Invalid, config
from hllm_jax.data.config import DataConfig
from hllm_jax.models.config import LoRAConfig, ModelConfig
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
class Config:
    """Everything a run can be told.

    Attributes:
        base: config that trains `model.load`, if that is a run folder which is not there yet.
    """

    recipe: str = "sft"
    base: str | None = None
    run: RunConfig
    model: ModelConfig
    lora: LoRAConfig | None = None
    data: DataConfig = DataConfig(packing="first_fit")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
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
            raise Invalid(("model.load", "fine-tuning starts from a model: a run folder, a file or a name"))
        check_sections(self.model, self.train, self.schedule, lora=self.lora)


def make_step(
    config: Config, model: Any, mesh: Any, steps: int
) -> tuple[objectives.Loss, parallel.Layout, training.TrainStep]:
    """Objective, layout and train step on a mesh; `hllm plan` compiles it for devices that are not here."""
    loss = objectives.causal_lm(model, z_loss=config.train.z_loss, chunks=config.train.logit_chunks)
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
    # ---- the model to start from; run, tokenizer, model ----
    training.make_base(config.model.load, config.base, config.distributed)
    run = training.Run.start(config)
    tokenizer, model, params = training.begin(run, config.model, adapters=config.lora)

    # ---- data: batches[n] is a pure function of n ----
    shape: dict[str, Any] = {
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
    state = run.restore(layout) or layout.init(config.run.seed, params)

    # ---- beside training: save first, then what may fail ----
    hooks = [training.save(run, config.checkpoint.every)]
    if config.eval.every != 0:
        with run.coordinator_first("held-out data"):
            held_out = config.data.build(tokenizer, epochs=1, split="validation", **shape)
        measure = training.make_evaluation(
            loss, layout, held_out, tokenizer.byte_lengths, config.eval.batches
        )
        hooks.append(training.evaluate(run, measure, config.eval.every))
    if (samples := config.log.samples).prompts:
        write = generation.sample_writer(model, tokenizer, samples)
        hooks.append(training.sample(run, write, samples.every))
    hooks += [training.profile(run, config.train.profile), *training.track(run, config.log)]

    # ---- train ----
    flops = model.config.flops_per_token(config.train.sequence_length, frozen=config.lora is not None)
    return training.train(run, state, step, batches, layout, steps, hooks, flops)
