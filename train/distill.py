"""Distillation: a small model learns what a larger one thinks of every next token.

    hllm train configs/distill/tiny.yaml train.steps=100

As `sft.py`, but for three things: a teacher is loaded beside the student, is read and never trained; what is
learned is its distribution over each next token, not the token alone (`objectives/distillation.py`); and the
student has the teacher's tokenizer, so it may also begin from nothing, as a `model.preset`.
"""

from __future__ import annotations

from typing import Any, Literal

from hllm_jax import generation, objectives, parallel, training
from hllm_jax.config import Invalid, config
from hllm_jax.data.config import DataConfig
from hllm_jax.models.config import ModelConfig
from hllm_jax.parallel.config import DistributedConfig, MeshConfig, Strategy
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
class DistillConfig:
    """What is learned, and from whom.

    Attributes:
        teacher: any MODEL with the student's tokenizer.
        kind: `forward_kl` covers all that the teacher may say, `reverse_kl` stays where it is sure, and `jsd`
            lies between them; see `objectives.distillation.divergence`.
        temperature: of both distributions.
        hard: share of the text itself in the loss.
        mixture: of `jsd`.
    """

    teacher: str
    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    temperature: float = 1.0
    hard: float = 0.0
    mixture: float = 0.5

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (not self.temperature > 0, "temperature", f"{self.temperature}: larger than 0"),
                (not 0 <= self.hard <= 1, "hard", f"{self.hard}: a share, 0 to 1"),
                (not 0 < self.mixture < 1, "mixture", f"{self.mixture}: between 0 and 1"),
                (self.mixture != 0.5 and self.kind != "jsd", "mixture", f"is not used by {self.kind}"),
            ]
        )


@config
class Config:
    """Everything a run can be told.

    Attributes:
        base: config that trains `model.load`, if that is a run folder which is not there yet.
        teacher_base: the same of `distill.teacher`.
    """

    recipe: str = "distill"
    base: str | None = None
    teacher_base: str | None = None
    run: RunConfig
    model: ModelConfig
    distill: DistillConfig
    data: DataConfig = DataConfig(packing="first_fit")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = "ddp"
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self) -> None:
        check_sections(self.model, self.train, self.schedule)


def make_step(
    config: Config, model: Any, mesh: Any, steps: int, teacher: training.OpenPretrained | None = None
) -> tuple[objectives.Loss, parallel.Layout, training.TrainStep]:
    """Objective, layout and train step on a mesh; `hllm plan` compiles it for devices that are not here."""
    teacher = teacher or training.open_pretrained(config.distill.teacher)
    master = training.build_teacher(teacher, model)
    wanted = config.distill
    vocab_size = min(model.config.vocab_size, master.config.vocab_size)
    divergence = wanted.kind, wanted.temperature, wanted.hard, wanted.mixture
    loss = objectives.distill(model, master, vocab_size, *divergence, chunks=config.train.logit_chunks)
    optimizer = training.make_optimizer(config.optimizer, config.schedule, steps)
    layout = parallel.Layout(
        mesh,
        parallel.make_rules(config.strategy),
        model,
        optimizer,
        trainable=training.is_student,
        variables=training.beside_teacher(model, master),
    )
    layout.check_batch(config.train.batch_size, config.train.accumulation)
    step = training.make_train_step(
        loss, optimizer, layout, config.train.accumulation, config.train.reduce_dtype
    )
    return loss, layout, step


def main(config: Config) -> training.TrainState:
    """Train, or go on where the run folder stands."""
    # ---- the teacher, and the model to start from; run, tokenizer, model ----
    training.make_base(config.distill.teacher, config.teacher_base, config.distributed)
    training.make_base(config.model.load, config.base, config.distributed)
    run = training.Run.start(config)
    teacher = training.open_pretrained(config.distill.teacher)
    name, length = config.distill.teacher, config.train.sequence_length
    tokenizer, model, params = training.begin(
        run, config.model, lambda: training.tokenizer_of_teacher(teacher, name)
    )
    training.check_teacher(teacher, name, tokenizer, model, length)

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
    loss, layout, step = make_step(config, model, mesh, steps, teacher)
    others = training.read_teacher(teacher, config.model.scan_layers)
    state = run.restore(layout) or layout.init(config.run.seed, params, others=others)

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
        write = generation.sample_writer(model, tokenizer, samples, of=training.of_student)
        hooks.append(training.sample(run, write, samples.every))
    hooks += [training.profile(run, config.train.profile), *training.track(run, config.log)]

    # ---- train: the teacher only computes forwards, a third of a step ----
    flops = model.config.flops_per_token(length) + teacher.config.flops_per_token(length) / 3
    return training.train(run, state, step, batches, layout, steps, hooks, flops)
