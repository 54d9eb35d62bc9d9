"""What rollouts, and what learns from them, can be told. Imports no jax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hllm_jax.config import Invalid, config
from hllm_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from hllm_jax.data.config import DataConfig
    from hllm_jax.models.config import LoRAConfig, ModelConfig

#: Why what the sampler cuts off is no part of a policy.
TRUNCATED = (
    "is not possible in a rollout: what was cut off would have a probability in the policy and none in the "
    "sampler, and the ratio of the two is what these methods learn from; choose a temperature instead"
)

#: Why there is no dropout.
DROPPED = "is not used: there is none when answers are sampled, so there is none when they are learned from"


@config
class RolloutConfig:
    """An iteration: `train.batch_size` prompts, `group` answers to each, and what is learned from them.

    Attributes:
        group: answers to each prompt.
        prompt_window: tokens of the longest prompt, W.
        max_tokens: most tokens of an answer; rows have `prompt_window + max_tokens` tokens, L.
        temperature: of the distribution that is sampled, and of every log-probability.
        epochs: times that the answers are gone through.
        minibatches: updates an epoch; divide the answers.
        top_k, top_p, min_p, repetition_penalty: here only so that a config that asks for them is told why
            not.
    """

    group: int = 1
    prompt_window: int = 64
    max_tokens: int = 64
    temperature: float = 1.0
    epochs: int = 1
    minibatches: int = 1
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        counts = ("group", "prompt_window", "max_tokens", "epochs", "minibatches")
        cut = {
            "top_k": self.top_k is not None,
            "top_p": self.top_p != 1.0,
            "min_p": self.min_p != 0.0,
            "repetition_penalty": self.repetition_penalty != 1.0,
        }
        Invalid.check(
            [
                *((getattr(self, name) < 1, name, f"{getattr(self, name)}: at least 1") for name in counts),
                (
                    not self.temperature > 0,
                    "temperature",
                    f"{self.temperature}: above 0; greedy answers have no probability to learn from",
                ),
                *((asked, name, f"{getattr(self, name)}: {TRUNCATED}") for name, asked in cut.items()),
            ]
        )

    @property
    def length(self) -> int:
        """Tokens of a row, L."""
        return self.prompt_window + self.max_tokens


@config
class GRPOConfig:
    """What is learned from groups of answers, each compared with the others to its prompt.

    Attributes:
        loss: `grpo` (Shao et al. 2024), `dr_grpo` (Liu et al. 2025), `dapo` (Yu et al. 2025; set `clip_high:
            0.28` too), `bnpo`, or `rloo` (Ahmadian et al. 2024); see `objectives/policy.py`. `best_of_n` is
            rejection sampling: it fine-tunes on the best answer to each prompt, see `best_of_group`.
        scale: what the distance from the mean of the group is divided by, its standard deviation or nothing;
            None: nothing for `dr_grpo` (and `rloo`, which knows no other), else the standard deviation.
        beta: coefficient of the KL to the reference: in the loss (k3), with `rloo` in the reward (k1). 0:
            none.
        clip_low, clip_high: the ratio is bounded by 1 - clip_low and 1 + clip_high (None: as below);
            `best_of_n` has no ratio.
        dual_clip: bounds the loss of bad answers whose ratio is large; None: does not.
        truncation: what becomes of answers without an end, see `objectives.truncation_policy`.
        truncation_value: for `penalise` and `replace`.
        kl_limit: the run stops, saved, where the KL on fresh rollouts (k3, nats a token) is larger; None:
            never.
    """

    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "rloo", "best_of_n"] = "grpo"
    scale: Literal["std", "none"] | None = None
    beta: float = 0.0
    clip_low: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    truncation: Literal["keep", "mask", "penalise", "replace"] = "keep"
    truncation_value: float = 0.0
    kl_limit: float | None = None

    def __post_init__(self) -> None:
        high = self.clip_low if self.clip_high is None else self.clip_high
        sole = self.loss == "rloo"
        Invalid.check(
            [
                (self.beta < 0, "beta", f"{self.beta}: 0 or more"),
                (not 0 < self.clip_low < 1, "clip_low", f"{self.clip_low}: above 0 and below 1"),
                (not high > 0, "clip_high", f"{self.clip_high}: above 0"),
                (
                    self.dual_clip is not None and not self.dual_clip > 1,
                    "dual_clip",
                    f"{self.dual_clip}: larger than 1, or null for none",
                ),
                *(
                    (asked, name, "is not used by best_of_n, which learns from the best answers alone")
                    for name, asked in (
                        ("scale", self.scale is not None),
                        ("beta", self.beta > 0),
                        ("clip_low", self.clip_low != 0.2),
                        ("clip_high", self.clip_high is not None),
                        ("dual_clip", self.dual_clip is not None),
                    )
                    if self.loss == "best_of_n"
                ),
                (
                    sole and self.dual_clip is not None,
                    "dual_clip",
                    "is not used by rloo, which bounds the ratio of whole answers",
                ),
                (
                    sole and self.scale == "std",
                    "scale",
                    "std is not used by rloo: its baseline is the mean of the other answers, unscaled",
                ),
                (
                    self.truncation_value != 0 and self.truncation in ("keep", "mask"),
                    "truncation_value",
                    f"is not used by truncation: {self.truncation}",
                ),
                (
                    self.truncation == "penalise" and not self.truncation_value > 0,
                    "truncation_value",
                    f"{self.truncation_value}: above 0, it is subtracted from the score",
                ),
                (
                    self.kl_limit is not None and self.kl_limit <= 0,
                    "kl_limit",
                    f"{self.kl_limit}: above 0, or null for none",
                ),
            ]
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the KL to a reference is looked at."""
        return self.beta > 0 or self.kl_limit is not None


def check_rl_sections(
    rollout: RolloutConfig,
    train: TrainConfig,
    model: ModelConfig,
    data: DataConfig,
    lora: LoRAConfig | None = None,
    grouped: bool = False,
) -> None:
    """Refuse sections of a recipe that do not go together; for the `__post_init__` of its config.

    Args:
        rollout, train, model, data, lora: the sections.
        grouped: answers are compared with the others to their prompt.

    Raises:
        Invalid: groups of one, settings that a rollout has no use for, rows or logits that do not divide.
    """
    rows, unit = train.batch_size * rollout.group, rollout.minibatches * train.accumulation
    default = TrainConfig(steps=1)
    Invalid.check(
        [
            (
                grouped and rollout.group < 2,
                "rollout.group",
                f"{rollout.group}: at least 2, for an answer is compared with the others to its prompt; "
                "alone, its advantage is always 0",
            ),
            (
                train.sequence_length != default.sequence_length,
                "train.sequence_length",
                f"is not used: rows have rollout.prompt_window + rollout.max_tokens tokens, {rollout.length}",
            ),
            (train.z_loss != 0, "train.z_loss", "is not used: it belongs to the loss of pretraining"),
            (model.dropout not in (None, 0), "model.dropout", DROPPED),
            (lora is not None and lora.dropout > 0, "lora.dropout", DROPPED),
            (
                data.packing != "none",
                "data.packing",
                f"{data.packing} is not done: every prompt has a row of its own; set none",
            ),
            (
                rows % unit != 0,
                "rollout.minibatches",
                f"{train.batch_size} prompts (train.batch_size) with {rollout.group} answers each are {rows} "
                f"rows, which do not divide into {rollout.minibatches} minibatches of {train.accumulation} "
                "microbatches (train.accumulation)",
            ),
            (
                rollout.max_tokens % train.logit_chunks != 0,
                "train.logit_chunks",
                f"answers of {rollout.max_tokens} tokens (rollout.max_tokens) do not divide into "
                f"{train.logit_chunks} parts",
            ),
        ]
    )
