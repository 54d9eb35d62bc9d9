"""Direct preference optimisation: a model learns from pairs of answers, without a reward model.

    hllm train configs/dpo/tiny.yaml train.steps=100

As `sft.py`, but for three things: records are pairs of answers; the loss compares both with a reference, the
model as it was before (the base without its adapters, or a frozen copy, or log-probabilities that were kept);
and what is measured beside training are the accuracy and the margins on held-out pairs.
"""

from __future__ import annotations

from typing import Any

from hllm_jax import evals, generation, objectives, parallel, rl, training
from hllm_jax.config import Invalid, config
from hllm_jax.data.config import DataConfig
from hllm_jax.data.preference_config import PairDataConfig, check_pairs
from hllm_jax.models.config import LoRAConfig, ModelConfig
from hllm_jax.parallel.config import DistributedConfig, MeshConfig, PipelineConfig, Strategy
from hllm_jax.rl.dpo_config import DPOConfig
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

    recipe: str = "dpo"
    base: str | None = None
    run: RunConfig
    model: ModelConfig
    lora: LoRAConfig | None = None
    dpo: DPOConfig = DPOConfig()
    pairs: PairDataConfig = PairDataConfig()
    data: DataConfig = DataConfig(packing="none")
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(kind="linear", peak=5e-7, warmup=0.1, end=0.0)
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
            raise Invalid(("model.load", "a policy starts from a model: a run folder, a file or a name"))
        check_sections(self.model, self.train, self.schedule, lora=self.lora)
        check_pairs(self.data, self.pairs, self.dpo.loss)

    @property
    def has_copy(self) -> bool:
        """Whether the state holds a frozen copy of the first weights."""
        return self.dpo.needs_reference and self.dpo.reference == "live" and self.lora is None


def make_step(
    config: Config, model: Any, mesh: Any, steps: int
) -> tuple[objectives.Loss, parallel.Layout, training.TrainStep]:
    """Objective, layout and train step on a mesh; `hllm plan` compiles it for devices that are not here."""
    preferences = rl.Preferences(model, config.dpo, config.train.logit_chunks)
    optimizer = training.make_optimizer(config.optimizer, config.schedule, steps)
    roles = rl.make_roles(None, model, config.lora, reference=config.has_copy)
    layout = parallel.Layout(
        mesh,
        parallel.make_rules(config.strategy),
        model,
        optimizer,
        trainable=roles.trainable,
        adapters=config.lora,
        pipeline=config.pipeline,
        variables=roles.variables,
    )
    layout.check_batch(config.train.batch_size, config.train.accumulation)
    step = training.make_train_step(
        preferences.loss,
        optimizer,
        layout,
        config.train.accumulation,
        config.train.reduce_dtype,
        preferences.before,
    )
    return preferences.loss, layout, step


def main(config: Config) -> training.TrainState:
    """Train, or go on where the run folder stands."""
    # ---- the model to start from; run, tokenizer, model ----
    training.make_base(config.model.load, config.base, config.distributed)
    run = training.Run.start(config)
    tokenizer, model, params = training.begin(run, config.model, adapters=config.lora)

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

    # ---- the step: shapes and shardings first, then arrays; the reference begins as the policy ----
    mesh = parallel.make_mesh(config.mesh, config.strategy)
    loss, layout, step = make_step(config, model, mesh, steps)
    preferences = rl.Preferences(model, config.dpo, config.train.logit_chunks)
    state = run.restore(layout)
    first = None
    if state is None:
        copy: Any = {("reference", "params"): params} if config.has_copy else None
        state = first = layout.init(config.run.seed, params, others=copy)
    seen: Any = batches
    if config.dpo.reference == "precomputed":
        seen = rl.with_reference(batches, run.folder / "reference.npz", first, layout, preferences, run.say)

    # ---- beside training: save first, then what may fail ----
    hooks = [training.save(run, config.checkpoint.every)]
    if config.eval.every != 0:
        with run.coordinator_first("held-out data"):
            held_out: Any = config.data.build(tokenizer, epochs=1, split="validation", **shape)
        if config.dpo.reference == "precomputed":
            kept = run.folder / "reference-held-out.npz"
            held_out = rl.with_reference(held_out, kept, first, layout, preferences, run.say)
        note = run.lines("pairs.jsonl").write
        measure = evals.make_pair_evaluation(
            loss, layout, held_out, config.eval.batches, preferences.scores, note
        )
        hooks.append(training.evaluate(run, measure, config.eval.every))
    if (samples := config.log.samples).prompts:
        write = generation.sample_writer(model, tokenizer, samples, of=rl.policy_of)
        hooks.append(training.sample(run, write, samples.every))
    hooks += [training.profile(run, config.train.profile), *training.track(run, config.log)]

    # ---- train: the reference reads every token too, which is a third of a step ----
    flops = model.config.flops_per_token(config.train.sequence_length, frozen=config.lora is not None)
    passes = 1 + (config.dpo.needs_reference and config.dpo.reference == "live") / 3
    return training.train(run, state, step, seen, layout, steps, hooks, passes * flops)
