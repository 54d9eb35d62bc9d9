"""Pretraining: raw text in, a base model out.

    hllm train configs/pretrain/tiny.yaml train.steps=100
    hllm train configs/pretrain/bert-tiny.yaml

The objective and the model are choices of the configuration: a decoder that predicts the next token, an
encoder that guesses hidden ones, an encoder and decoder that fill in spans, and others (docs/objectives.md).
Copy this file (`hllm recipes copy pretrain DIR`), change a line, and train with it.
"""

from __future__ import annotations

from typing import Any

from hllm_jax import data, generation, objectives, parallel, training
from hllm_jax.config import config
from hllm_jax.data.config import DataConfig
from hllm_jax.data.objective import ObjectiveConfig
from hllm_jax.models.config import LoRAConfig, ModelConfig
from hllm_jax.parallel.config import DistributedConfig, MeshConfig, PipelineConfig, Strategy
from hllm_jax.tokenizers.config import TokenizerConfig
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
    """Everything a run can be told."""

    recipe: str = "pretrain"
    run: RunConfig
    model: ModelConfig
    lora: LoRAConfig | None = None
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
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
        check_sections(self.model, self.train, self.schedule, self.objective, self.data, self.log, self.lora)


def make_step(
    config: Config, model: Any, mesh: Any, steps: int
) -> tuple[objectives.Loss, parallel.Layout, training.TrainStep]:
    """Objective, layout and train step on a mesh; `hllm plan` compiles it for devices that are not here."""
    loss = objectives.make_loss(
        config.objective, model, z_loss=config.train.z_loss, chunks=config.train.logit_chunks
    )
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
    # ---- run, tokenizer, model ----
    run = training.Run.start(config)
    tokenizer, model, params = training.begin(
        run, config.model, lambda: data.tokenizer_for(config.tokenizer, config.data), config.lora
    )
    training.check_objective(config.objective, model.config)

    # ---- data: batches[n] is a pure function of n ----
    shape: dict[str, Any] = {
        "objective": config.objective,
        "decoder_start": getattr(model.config, "decoder_start", None),
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
        sizes = tokenizer.byte_lengths if config.objective.kind == "causal" else None
        measure = training.make_evaluation(loss, layout, held_out, sizes, config.eval.batches)
        hooks.append(training.evaluate(run, measure, config.eval.every))
    if (samples := config.log.samples).prompts:
        write = generation.sample_writer(model, tokenizer, samples, raw=True)
        hooks.append(training.sample(run, write, samples.every))
    hooks += [training.profile(run, config.train.profile), *training.track(run, config.log)]

    # ---- train ----
    flops = model.config.flops_per_token(*batches.lengths, frozen=config.lora is not None)
    return training.train(run, state, step, batches, layout, steps, hooks, flops)
