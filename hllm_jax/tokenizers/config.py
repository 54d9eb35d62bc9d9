"""The `tokenizer:` section of a config: which tokenizer to load, or how to train one."""

from __future__ import annotations

from typing import Literal

from hllm_jax.config import Invalid, config

Kind = Literal["unigram", "bpe", "byte_bpe", "wordpiece"]

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
MASK = "<|mask|>"
# Those of a WordPiece tokenizer, in BERT's spelling.
WORDPIECE_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Bytes of text that training reads, a sample of equal chance over the whole corpus. Measured for 6,144 pieces
# of English and Chinese, in processor seconds: bpe 2.1 and byte_bpe 7.5 for 8 MB, unigram 15 for 4 MB.
SAMPLE_BYTES: dict[Kind, int] = {
    "bpe": 64_000_000,
    "byte_bpe": 32_000_000,
    "unigram": 4_000_000,
    "wordpiece": 32_000_000,
}


@config
class TokenizerConfig:
    """Which tokenizer to load, or how to train one.

    Attributes:
        path: an existing tokenizer folder; of the other fields only `chat_template` is then used.
        kind: "bpe" and "unigram" are SentencePiece with byte fallback, "byte_bpe" is byte-level BPE;
            "wordpiece" is BERT's, for encoders: it loses blanks, and characters that it has no piece for.
        vocab_size: number of ids, special tokens and (but for wordpiece) the 256 bytes included.
        character_coverage: share of the text's characters that get a piece of their own; rarer ones become
            bytes, in wordpiece unknown. Not for byte_bpe.
        alphabet_share: upper bound on the share that single characters may take of the ids left by special
            tokens and bytes, so that a small vocabulary over Chinese text has room for words. Not for
            byte_bpe.
        max_piece_length: longest piece, in characters.
        split_digits: one token a digit. Not for wordpiece.
        lowercase: lower case without accents, as BERT's uncased models. Only for wordpiece.
        sample_bytes: bytes of text that training reads, sampled from all of it; None is 64 MB for bpe,
            32 MB for byte_bpe and wordpiece and 4 MB for unigram.
        mask_token: have a `<|mask|>`, for masked language models; wordpiece has its `[MASK]` anyway.
        sentinels: have `<extra_id_0>`, `<extra_id_1>`, … so many, for span corruption; T5 has 100.
        special_tokens: further control tokens, for example `["<|think|>"]`; text never becomes one of them.
        chat_template: a Jinja file that replaces the built-in ChatML template (wordpiece has none built in).
    """

    path: str | None = None
    kind: Kind = "bpe"
    vocab_size: int = 6144
    character_coverage: float = 0.9995
    alphabet_share: float = 0.35
    max_piece_length: int = 16
    split_digits: bool = True
    lowercase: bool = True
    sample_bytes: int | None = None
    mask_token: bool = False
    sentinels: int = 0
    special_tokens: tuple[str, ...] = ()
    chat_template: str | None = None

    def __post_init__(self) -> None:
        reserved = len(self.control_tokens) + self.byte_count
        clash = sorted({t for t in self.special_tokens if self.control_tokens.count(t) > 1})
        short = sorted(t for t in self.special_tokens if len(t) < 2 or t != t.strip())
        Invalid.check(
            [
                (
                    self.vocab_size <= reserved,
                    "vocab_size",
                    f"{self.vocab_size} leaves no room for text: {len(self.control_tokens)} special tokens "
                    f"and {self.byte_count} bytes come first, so it must be at least {reserved + 1}",
                ),
                (self.sentinels < 0, "sentinels", "must be at least 0"),
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
        first = (PAD, UNK, BOS, EOS, IM_START, IM_END, *((MASK,) if self.mask_token else ()))
        sentinels = (f"<extra_id_{k}>" for k in range(self.sentinels))
        return (*(WORDPIECE_TOKENS if self.kind == "wordpiece" else first), *self.special_tokens, *sentinels)

    @property
    def byte_count(self) -> int:
        """Ids that are taken by single bytes."""
        return 0 if self.kind == "wordpiece" else 256

    @property
    def sample_limit(self) -> int:
        """`sample_bytes`, or the default of the kind."""
        return SAMPLE_BYTES[self.kind] if self.sample_bytes is None else self.sample_bytes
