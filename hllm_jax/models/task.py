"""What an encoder is fine-tuned to say: a class of a text, of every token, or a span. Imports no jax."""

from __future__ import annotations

from typing import Literal

from hllm_jax.config.declare import Invalid, config


@config
class TaskConfig:
    """A head for a task, beside those of pretraining.

    Attributes:
        kind: `"sequence"` one row of logits for a text, read from its first token; `"tokens"` one for every
            token; `"span"` logits of every token to be the first and the last of an answer.
        labels: names of the classes, in the order of the logits; none for a span. One label is a regression.
        dense: the head of a sequence reads the first token through `tanh(dense(…))` of its own (RoBERTa)
            instead of the pooler (BERT).
        dropout: before the last projection; None: the encoder's.
    """

    kind: Literal["sequence", "tokens", "span"] = "sequence"
    labels: tuple[str, ...] = ()
    dense: bool = False
    dropout: float | None = None

    def __post_init__(self) -> None:
        span = self.kind == "span"
        Invalid.check(
            [
                (not span and not self.labels, "labels", "name at least one: `[negative, positive]`"),
                (span and bool(self.labels), "labels", "a span has none: leave them out"),
                (len(set(self.labels)) < len(self.labels), "labels", f"{self.labels} name a class twice"),
                (
                    self.dense and self.kind != "sequence",
                    "dense",
                    f"is not used: the kind is {self.kind!r}, and a sequence's head alone may have one",
                ),
                (
                    self.dropout is not None and not 0 <= self.dropout < 1,
                    "dropout",
                    f"{self.dropout} must be at least 0 and below 1, or left out",
                ),
            ]
        )

    @property
    def outputs(self) -> int:
        """Size of a row of logits."""
        return 2 if self.kind == "span" else len(self.labels)

    def parameters(self, embed: int) -> int:
        """Parameters of the head over a stream of this width."""
        dense = embed * embed + embed if self.dense else 0
        return dense + embed * self.outputs + self.outputs
