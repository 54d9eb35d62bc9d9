"""The small protocol behind every tokenizer: ordinary text to ids, and the bytes of each id."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.tokenizers.frame import Frame


@dataclasses.dataclass(frozen=True)
class SpecialToken:
    """A control token: a chat template can produce it by its text, ordinary text cannot.

    Attributes:
        text: its spelling, for example `<|im_end|>`.
        id: its id.
        lstrip: blanks before it are swallowed (foreign tokenizers).
        rstrip: blanks after it are swallowed (foreign tokenizers).
    """

    text: str
    id: int
    lstrip: bool = False
    rstrip: bool = False


class Codec(Protocol):
    """Ordinary text to ids. Knows nothing of documents, templates or which special token means what.

    Attributes:
        kind: "unigram", "bpe", "byte_bpe", "wordpiece", …: for display.
        vocab_size: one above the largest id.
        special: the control tokens.
        pieces: the bytes of each id, `b""` for control tokens and for ids without a token.
        adds_space: encoding puts a space before the text, which decoding takes away (foreign tokenizers).
        adds_space_once: of a conversation only the very beginning gets that space, not each part of it that
            follows a control token.
        trails_space: a piece that ends a word carries the space after it; decoding takes the last one away.
        unk_id: what stands for characters without a piece; None where there is none.
        lossless: every text comes back from its ids exactly.
    """

    kind: str
    vocab_size: int
    special: tuple[SpecialToken, ...]
    pieces: tuple[bytes, ...]
    adds_space: bool
    adds_space_once: bool
    trails_space: bool
    unk_id: int | None
    lossless: bool

    def encode(self, text: str) -> list[int]:
        """Ids of an ordinary text: never one of a control token, whatever the text spells."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in parallel."""
        ...

    def framed(self, frame: Frame) -> Codec:
        """The same codec, whose files tell other programs what to put around texts."""
        ...

    def files(self) -> dict[str, bytes]:
        """File name to content: all that is needed to make this codec again, always the same bytes."""
        ...
