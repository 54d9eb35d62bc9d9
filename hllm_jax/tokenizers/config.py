"""The `tokenizer:` section of a config: which tokenizer to load, or how to train one."""

from __future__ import annotations

from typing import Literal

from hllm_jax.config import Invalid, config

Kind = Literal["unigram", "bpe", "byte_bpe"]

# The tokens that every tokenizer trained here has, in the order of their ids. `<|unk|>` exists because
# SentencePiece wants one; no text ever becomes it.
PAD, UNK, BOS, EOS, IM_START, IM_END = (
    "<|pad|>",
    "<|unk|>",
    "<|bos|>",
    "<|eos|>",
    "<|im_start|>",
    "<|im_end|>",
)

# Bytes of text that training reads, a sample of equal chance over the whole corpus. Measured for 6,144 pieces
# of English and Chinese, in processor seconds: bpe 2.1 and byte_bpe 7.5 for 8 MB, unigram 15 for 4 MB.
SAMPLE_BYTES: dict[Kind, int] = {"bpe": 64_000_000, "byte_bpe": 32_000_000, "unigram": 4_000_000}


@config
class TokenizerConfig:
    """Which tokenizer to load, or how to train one.

    Attributes:
        path: an existing tokenizer folder; of the other fields only `chat_template` is then used.
        kind: "bpe" and "unigram" are SentencePiece with byte fallback, "byte_bpe" is byte-level BPE.
        vocab_size: number of ids, special tokens and the 256 bytes included.
        character_coverage: share of the text's characters that get a piece of their own; rarer ones become
            bytes. SentencePiece kinds only.
        alphabet_share: upper bound on the share that single characters may take of the ids left by special
            tokens and bytes, so that a small vocabulary over Chinese text has room for words. SentencePiece
            kinds only.
        max_piece_length: longest piece, in characters.
        split_digits: one token a digit.
        sample_bytes: bytes of text that training reads, sampled from all of it; None is 64 MB for bpe,
            32 MB for byte_bpe and 4 MB for unigram.
        special_tokens: further control tokens, for example `["<|think|>"]`; text never becomes one of them.
        chat_template: a Jinja file that replaces the built-in ChatML template.
    """

    path: str | None = None
    kind: Kind = "bpe"
    vocab_size: int = 6144
    character_coverage: float = 0.9995
    alphabet_share: float = 0.35
    max_piece_length: int = 16
    split_digits: bool = True
    sample_bytes: int | None = None
    special_tokens: tuple[str, ...] = ()
    chat_template: str | None = None

    def __post_init__(self) -> None:
        reserved = len(self.control_tokens) + 256
        clash = sorted({t for t in self.special_tokens if self.control_tokens.count(t) > 1})
        short = sorted(t for t in self.special_tokens if len(t) < 2 or t != t.strip())
        Invalid.check(
            [
                (
                    self.vocab_size <= reserved,
                    "vocab_size",
                    f"{self.vocab_size} leaves no room for text: {len(self.control_tokens)} special tokens "
                    f"and 256 bytes come first, so it must be at least {reserved + 1}",
                ),
                (not 0 < self.character_coverage <= 1, "character_coverage", "must be above 0 and at most 1"),
                (not 0 < self.alphabet_share <= 1, "alphabet_share", "must be above 0 and at most 1"),
                (not 1 <= self.max_piece_length <= 512, "max_piece_length", "must be from 1 to 512"),
                (
                    self.sample_bytes is not None and self.sample_bytes < 1,
                    "sample_bytes",
                    "must be at least 1; leave it out for the default",
                ),
                (bool(clash), "special_tokens", f"{clash} exist already or are listed twice"),
                (bool(short), "special_tokens", f"{short}: at least two characters, no blanks at the ends"),
            ]
        )

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """All special tokens in the order of their ids, from 0."""
        return (PAD, UNK, BOS, EOS, IM_START, IM_END, *self.special_tokens)

    @property
    def sample_limit(self) -> int:
        """`sample_bytes`, or the default of the kind."""
        return SAMPLE_BYTES[self.kind] if self.sample_bytes is None else self.sample_bytes
