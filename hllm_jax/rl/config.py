"""What rollouts can be told. Imports no jax."""

from __future__ import annotations

from hllm_jax.config import Invalid, config

#: Why what the sampler cuts off is no part of a policy.
TRUNCATED = (
    "is not possible in a rollout: what was cut off would have a probability in the policy and none in the "
    "sampler, and the ratio of the two is what these methods learn from; choose a temperature instead"
)


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
