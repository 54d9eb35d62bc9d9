"""The sections `run, train, optimizer, schedule, checkpoint, eval, log`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hllm_jax.config import LOCAL_ONLY, Invalid, config, is_remote

if TYPE_CHECKING:
    from hllm_jax.data.config import DataConfig
    from hllm_jax.data.objective import ObjectiveConfig
    from hllm_jax.models.config import LoRAConfig, ModelConfig


@config
class RunConfig:
    """Where a run lives and what it may do.

    Attributes:
        dir: the run folder, on a local or mounted disk; made if missing, resumed if it holds checkpoints.
        seed: of initial weights, data order and dropout.
        platform: refuse to run on anything else; `auto` takes what JAX finds.
        overlap: append the flags of `parallel/overlap.py`, which let collectives overlap with computation, to
            LIBTPU_INIT_ARGS (TPU) or XLA_FLAGS (GPU); flags that are set already stay as they are.
        allow_changes: resume although the config differs in what the run is.
    """

    dir: str = "runs/default"
    seed: int = 0
    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    overlap: bool = False
    allow_changes: bool = False

    def __post_init__(self) -> None:
        Invalid.check([(is_remote(self.dir), "dir", LOCAL_ONLY)])


@config
class ProfileConfig:
    """A profiler trace of a few steps, written to `<run>/profile`; `steps=0` takes none."""

    start: int = 10
    steps: int = 0


@config
class TrainConfig:
    """The loop.

    Attributes:
        steps: updates in all; None takes them from `epochs`.
        epochs: passes over the data; None repeats it as long as `steps` needs.
        batch_size: sequences per update, over all devices and microbatches.
        sequence_length: tokens per row.
        accumulation: microbatches per update.
        z_loss: weight of the squared log-partition.
        logit_chunks: a decoder's logits are made of so many parts of each row, one after another, and again
            for the backward pass: less memory for a little more arithmetic.
        reduce_dtype: gradients are summed over devices and microbatches in it.
        nan_policy: what follows a loss or gradient that is not finite. The update is skipped and the batch
            kept in the run folder either way; `stop` ends the run with a checkpoint, `continue` goes on.
        nan_limit: with `continue`, so many bad batches in a row end the run all the same.
        profile: a profiler trace.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    sequence_length: int = 512
    accumulation: int = 1
    z_loss: float = 0.0
    logit_chunks: int = 1
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    nan_policy: Literal["stop", "continue"] = "stop"
    nan_limit: int = 10
    profile: ProfileConfig = ProfileConfig()

    def __post_init__(self) -> None:
        micro = max(self.accumulation, 1)
        Invalid.check(
            [
                (
                    (self.steps is None) == (self.epochs is None),
                    "steps",
                    "give train.steps or train.epochs, one of the two",
                ),
                (self.steps is not None and self.steps < 1, "steps", f"{self.steps}: at least 1"),
                (self.epochs is not None and self.epochs < 1, "epochs", f"{self.epochs}: at least 1"),
                (self.batch_size < 1, "batch_size", f"{self.batch_size}: at least 1"),
                (self.sequence_length < 2, "sequence_length", f"{self.sequence_length}: at least 2"),
                (self.accumulation < 1, "accumulation", f"{self.accumulation}: at least 1"),
                (
                    self.batch_size % micro != 0,
                    "accumulation",
                    f"batch_size {self.batch_size} does not divide into {self.accumulation} microbatches",
                ),
                (self.z_loss < 0, "z_loss", f"{self.z_loss}: 0 or more"),
                (self.logit_chunks < 1, "logit_chunks", f"{self.logit_chunks}: at least 1"),
                (
                    self.logit_chunks > 1 and self.sequence_length % self.logit_chunks != 0,
                    "logit_chunks",
                    f"rows of {self.sequence_length} do not divide into {self.logit_chunks} parts",
                ),
            ]
        )


@config
class OptimizerConfig:
    """The optimizer. Weight decay is decoupled (Loshchilov & Hutter 2019) and touches matrices only.

    Attributes:
        name: `adamw`; `adafactor` (Shazeer & Stern 2018), `lion` (Chen et al. 2023), `muon` (Jordan et al.
            2024: matrices between hidden layers, AdamW for the rest).
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: per unit of learning rate.
        clip_norm: largest global norm of the gradient; None for no clipping.
        state_dtype: of the moments of AdamW, Lion and Muon; `int8` by blocks (Dettmers et al. 2022), see
            `training/moments.py`. Updates are computed in float32.
        offload: the moments and the copy of the parameters wait in the memory of the host (TPU and GPU), and
            come to the device for the update.
        master_dtype: keep a copy of the parameters in it, which is what the updates change; the parameters
            (`model.param_dtype: bfloat16`) are that copy, rounded (mixed precision: Micikevicius et al. 2018,
            section 3.1). None: there is no copy.
    """

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    state_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    master_dtype: Literal["float32"] | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (not all(0 <= b < 1 for b in self.betas), "betas", f"{self.betas}: each in [0, 1)"),
                (self.eps <= 0, "eps", f"{self.eps}: above 0"),
                (self.weight_decay < 0, "weight_decay", f"{self.weight_decay}: 0 or more"),
                (
                    self.clip_norm is not None and self.clip_norm <= 0,
                    "clip_norm",
                    f"{self.clip_norm}: above 0, or null for no clipping",
                ),
                (
                    self.state_dtype != "float32" and self.name == "adafactor",
                    "state_dtype",
                    f"{self.state_dtype} has nothing to save: adafactor keeps sums of rows and columns",
                ),
                (
                    # Half a step of bfloat16, at least 2^-9 of a value: a smaller decay is rounded away.
                    self.state_dtype == "bfloat16" and self.name != "lion" and self.betas[1] > 0.996,
                    "state_dtype",
                    f"a second moment in bfloat16 never falls with a decay of {self.betas[1]}: "
                    "betas[1] up to 0.996, or int8",
                ),
            ]
        )


@config
class ScheduleConfig:
    """The learning rate as a function of the update: from `start` up to `peak`, then down to `end`.

    Attributes:
        kind: `cosine` (to `end`), `linear` (to `end`), `wsd` (stays at `peak`, falls over the last `decay` of
            the updates: warm-up, stable, decay; Hu et al. 2024), `constant`; and two that do not know the
            last update: `noam` (the Transformer of 2017: up to the peak, then with the inverse square root)
            and `inverse_sqrt` (T5: `peak` while others warm up, then with the inverse square root).
        peak: the largest learning rate. (`noam` computes its own from `width` and `warmup`.)
        width: for `noam`, the width of the model.
        warmup: updates of linear warm-up; a number below 1 is a share of all updates.
        start: learning rate of update 0 as a share of the peak, if there is a warm-up.
        end: learning rate of the last update as a share of the peak.
        decay: for `wsd`, the share of all updates that decays.
    """

    kind: Literal["cosine", "wsd", "linear", "constant", "noam", "inverse_sqrt"] = "cosine"
    peak: float = 3e-4
    width: int | None = None
    warmup: float = 0.02
    start: float = 0.0
    end: float = 0.1
    decay: float = 0.2

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (self.peak < 0, "peak", f"{self.peak}: 0 or more"),
                (self.warmup < 0, "warmup", f"{self.warmup}: 0 or more"),
                (
                    self.warmup >= 1 and self.warmup != int(self.warmup),
                    "warmup",
                    f"{self.warmup}: a whole number of updates, or a share below 1",
                ),
                (
                    (self.width is None or self.width < 1) if self.kind == "noam" else self.width is not None,
                    "width",
                    "noam needs the width of the model (512 in the paper)"
                    if self.kind == "noam"
                    else f"is not used by {self.kind}: only noam computes its peak",
                ),
                (
                    self.kind == "noam" and self.peak != 3e-4,
                    "peak",
                    f"{self.peak} is not used: the peak of noam is width^-0.5 · warmup^-0.5",
                ),
                (
                    self.kind in ("noam", "inverse_sqrt") and self.warmup == 0,
                    "warmup",
                    f"{self.kind} needs one: its learning rate falls with the inverse square root after it",
                ),
                (not 0 <= self.start <= 1, "start", f"{self.start}: a share of the peak, 0 to 1"),
                (not 0 <= self.end <= 1, "end", f"{self.end}: a share of the peak, 0 to 1"),
                (
                    not 0 < self.decay <= 1,
                    "decay",
                    f"{self.decay}: a share of the updates, above 0, at most 1",
                ),
            ]
        )


#: Metrics of evaluations that are better the larger they are.
LARGER = ("eval/reward", "eval/accuracy", "eval/f1", "eval/entity_f1", "eval/exact")


@config
class CheckpointConfig:
    """Checkpoints, written in the background to `<run>/checkpoints`.

    Attributes:
        every: updates between two; None only at the end. The last update is always saved.
        keep: so many of the newest stay.
        best: and the best by this evaluation metric (smaller is better); None for none.
    """

    every: int | None = 500
    keep: int = 2
    best: str | None = "eval/loss"

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (self.every is not None and self.every < 1, "every", f"{self.every}: at least 1, or null"),
                (self.keep < 1, "keep", f"{self.keep}: at least 1"),
                (
                    self.best in LARGER,
                    "best",
                    f"{self.best}: that of its smallest value would stay, and that is the worst one; "
                    "null keeps the newest ones",
                ),
            ]
        )


@config
class EvalConfig:
    """Evaluation on held-out data.

    Attributes:
        every: updates between two; None only at the end; 0 never.
        batches: batches of `train.batch_size` rows, always the same ones.
    """

    every: int | None = 500
    batches: int = 8

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (self.every is not None and self.every < 0, "every", f"{self.every}: 0 or more, or null"),
                (
                    self.batches < 1,
                    "batches",
                    f"{self.batches}: at least 1 (eval.every=0 switches evaluation off)",
                ),
            ]
        )


@config
class SampleConfig:
    """Texts that the model writes now and then; `every` as in `eval`."""

    every: int | None = None
    prompts: tuple[str, ...] = ()
    max_tokens: int = 64
    temperature: float = 0.8


@config
class LogConfig:
    """What is written down.

    Attributes:
        every: updates between two lines of `metrics.jsonl`.
        progress: the live progress line.
        tensorboard: also write TensorBoard events (needs tensorboardX).
        tracker: also send to `wandb` or `swanlab`, if installed.
        samples: texts the model writes while it learns.
    """

    every: int = 10
    progress: bool = True
    tensorboard: bool = False
    tracker: Literal["wandb", "swanlab"] | None = None
    samples: SampleConfig = SampleConfig()

    def __post_init__(self) -> None:
        Invalid.check([(self.every < 1, "every", f"{self.every}: at least 1")])


def warmup_updates(schedule: ScheduleConfig, steps: int) -> int:
    """Updates of warm-up: `schedule.warmup`, or that share of `steps`."""
    return round(schedule.warmup * steps) if schedule.warmup < 1 else int(schedule.warmup)


def schedule_problem(schedule: ScheduleConfig, steps: int) -> tuple[str, str] | None:
    """Field and message if the phases of a schedule do not fit into so many updates."""
    last, warmup = steps - 1, warmup_updates(schedule, steps)
    if schedule.kind in ("noam", "inverse_sqrt"):
        if warmup < 1 and schedule.warmup > 0:
            return "warmup", f"{schedule.warmup} of {steps} updates is none: at least one is needed"
        return None  # they do not depend on the last update, and a short run is the beginning of a long one
    if steps > 1 and warmup > last:
        return "warmup", f"{warmup} updates of warm-up do not fit into train.steps={steps}: at most {last}"
    falling = round(schedule.decay * steps)
    if schedule.kind == "wsd" and steps > 1 and warmup + falling > last:
        return "decay", (
            f"{warmup} updates of warm-up and {falling} of decay overlap in train.steps={steps}: together "
            f"at most {last}"
        )
    return None


def check_sections(
    model: ModelConfig,
    train: TrainConfig,
    schedule: ScheduleConfig,
    objective: ObjectiveConfig | None = None,
    data: DataConfig | None = None,
    log: LogConfig | None = None,
    lora: LoRAConfig | None = None,
) -> None:
    """Refuse sections that do not go together; for the `__post_init__` of a recipe's config.

    Raises:
        Invalid: a schedule that does not fit into the steps, rows longer than the model's `max_length`, an
            objective for another kind of model, or for other data, adapters of nothing.
    """
    problems: list[tuple[str, str]] = []
    if lora is not None and model.load is None:
        message = "adapters change a model that is there: give model.load, or remove this section"
        problems.append(("lora", message))
    if train.steps is not None and (found := schedule_problem(schedule, train.steps)):
        problems.append((f"schedule.{found[0]}", found[1]))
    longest = None if model.load is not None else model.spec().max_length
    if longest is not None and train.sequence_length > longest:
        problems.append(
            (
                "train.sequence_length",
                f"{train.sequence_length} is longer than the model's max_length {longest}: "
                "shorten it, or set model.max_length",
            )
        )
    if train.logit_chunks > 1 and objective is not None and objective.model_kind != "decoder":
        message = (
            f"is not used: {objective.kind} has all its logits at once; only decoders make them in parts"
        )
        problems.append(("train.logit_chunks", message))
    if objective is not None:
        from hllm_jax.training.objective import data_problems, model_problems

        problems += model_problems(objective, model.spec()) if model.load is None else []
        problems += data_problems(objective, data) if data is not None else []
        if log is not None and log.samples.prompts and objective.kind != "causal":
            message = f"a model that learns by {objective.kind} does not go on with a prompt: remove them"
            problems.append(("log.samples.prompts", message))
    if problems:
        raise Invalid(*problems)
