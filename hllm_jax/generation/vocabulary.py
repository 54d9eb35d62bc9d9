"""What generation needs of a tokenizer, and what stands for it where a model has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hllm_jax.tokenizers import Tokenizer


class Pieces(Protocol):
    """Ids to text, one at a time."""

    def push(self, token: int) -> str:
        """The text that became certain with this id."""
        ...


class Vocabulary(Protocol):
    """How many ids there are, which of them end an answer, and what they spell: a `Tokenizer`, or `Ids`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def stop_ids(self) -> Sequence[int]: ...

    def answer_stream(self) -> Pieces:
        """A decoder of what a model says."""
        ...


class Ids:
    """The vocabulary of a model without a tokenizer: ids that spell nothing.

    Attributes:
        vocab_size: all ids of the model.
        stop_ids: what ends an answer, as far as the model says it.
    """

    def __init__(self, vocab_size: int, stop_ids: Sequence[int] = ()) -> None:
        self.vocab_size, self.stop_ids = vocab_size, tuple(stop_ids)

    def answer_stream(self) -> Ids:
        """See `Vocabulary`."""
        return self

    def push(self, token: int) -> str:
        """No text."""
        del token
        return ""


def need_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer.

    Raises:
        ValueError: there is none.
    """
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: give token ids instead of text")
    return tokenizer
