"""The `task:` section: what a head on an encoder learns to answer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hllm_jax.config import Invalid, config
from hllm_jax.data.examples import TaskKind

if TYPE_CHECKING:
    from hllm_jax.data.config import DataConfig
    from hllm_jax.data.transforms.piece import Transform
    from hllm_jax.tokenizers.tokenizer import Tokenizer

MOST_CLASSES = 254  # of words: a byte in the store, of which 0 means "not the first token of a word"


@config
class TaskDataConfig:
    """A task and its answers.

    Attributes:
        kind: `sequence`, a class for every text (records `{"text", "label"}`, with `pair` for two texts);
            `tokens`, one for every word (`{"tokens", "labels"}`); `span`, the part of a text that answers a
            question (`{"question", "context", "answers"}`).
        labels: names of the classes, in the order of their numbers; none: all that the training data has.
        longest_question: for `span`, tokens of a question that are kept.
        longest_answer: for `span`, tokens that an answer may have.
    """

    kind: TaskKind = "sequence"
    labels: tuple[str, ...] = ()
    longest_question: int = 64
    longest_answer: int = 30

    def __post_init__(self) -> None:
        words = self.kind == "tokens"
        Invalid.check(
            [
                (len(set(self.labels)) < len(self.labels), "labels", "a label is listed twice"),
                (
                    self.kind == "span" and bool(self.labels),
                    "labels",
                    "are not used: an answer is a stretch of the context",
                ),
                (len(self.labels) == 1, "labels", "a single class leaves nothing to learn: at least two"),
                (
                    words and len(self.labels) > MOST_CLASSES,
                    "labels",
                    f"{len(self.labels)} classes of words: at most {MOST_CLASSES}",
                ),
                (self.longest_question < 1, "longest_question", f"{self.longest_question}: at least 1"),
                (self.longest_answer < 1, "longest_answer", f"{self.longest_answer}: at least 1"),
            ]
        )

    def resolve(self, data: DataConfig) -> TaskDataConfig:
        """The same with its labels, read from the training split where they are not given.

        Raises:
            DataError: a record is no example of this task.
            Invalid: the data has fewer than two labels, or too many.
        """
        if self.kind == "span" or self.labels:
            return self
        from hllm_jax.data.examples import in_order
        from hllm_jax.data.sources import Counts, open_source, records

        found: set[str] = set()
        for source in data.sources:
            opened = open_source(source, "train", data.holdout)
            for _, record in records(opened, source, Counts(), self.kind):
                assert record.example is not None
                found.update(record.example.labels)
        return dataclasses.replace(self, labels=in_order(found))

    @property
    def described(self) -> str:
        """The section in a line."""
        return str(self)

    def transform(
        self, tokenizer: Tokenizer, sequence_length: int, decoder_start: int | None = None
    ) -> Transform:
        """How examples become rows; see `ObjectiveConfig.transform`."""
        from hllm_jax.data.transforms.tasks import TaskRows

        del decoder_start
        return TaskRows(self, tokenizer, sequence_length)
