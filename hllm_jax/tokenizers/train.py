"""Training a tokenizer: a fair sample, then SentencePiece, byte-level BPE or WordPiece."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm_jax.tokenizers.assembly import sentinel_ids
from hllm_jax.tokenizers.config import BOS, EOS, IM_END, MASK, PAD, WORDPIECE_TOKENS
from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.sampling import CHUNK, alphabet_of, sample, too_large
from hllm_jax.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hllm_jax.tokenizers.codec import Codec
    from hllm_jax.tokenizers.config import TokenizerConfig

CHATML = Path(__file__).with_name("chatml.jinja")

# Contractions; a run of Han characters, a word with the space before it, digits, punctuation with the line
# end after it, blanks. Han is kept from other letters, so that "Python语言" is two words; Latin letters have
# an alternative of their own for speed.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)(?![a-zA-Z])| ?\p{Han}+| ?[a-zA-Z]+| ?(?:(?!\p{Han})[\p{L}\p{M}])+|DIGITS"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a tokenizer.

    The same texts in the same order and the same config give the same tokenizer, bit for bit, on any number
    of cores. The texts are read once, as a stream; memory holds `config.sample_limit` bytes of them.

    Args:
        texts: documents.
        config: what to train; `path` is not used.

    Returns:
        A tokenizer with the special tokens `<|pad|> <|unk|> <|bos|> <|eos|> <|im_start|> <|im_end|>` (kind
        wordpiece: `[PAD] [UNK] [CLS] [SEP] [MASK]`) and those of the config, as ids from 0 on.

    Raises:
        TokenizerError: no usable text; a vocabulary smaller than bytes and alphabet need, or larger than the
            texts support (the largest possible is named); a chat template that cannot be read.
    """
    chunks, count = sample(texts, config.sample_limit)
    if not chunks:
        raise TokenizerError(
            f"there is no text to train a tokenizer on: {count} records were read and "
            + ("every one was empty or blank" if count else "the source is empty")
        )
    template = template_text(config)
    if config.kind == "wordpiece":
        from hllm_jax.tokenizers.huggingface import from_tokenizer_json
        from hllm_jax.tokenizers.wordpiece import train_wordpiece

        return from_tokenizer_json(
            train_wordpiece(chunks, config), pad=WORDPIECE_TOKENS[0], chat_template=template
        )
    codec = _byte_bpe(chunks, config) if config.kind == "byte_bpe" else _sentencepiece(chunks, config)
    ids = {token: i for i, token in enumerate(config.control_tokens)}
    return Tokenizer(
        codec,
        bos_id=ids[BOS],
        eos_id=ids[EOS],
        pad_id=ids[PAD],
        mask_id=ids.get(MASK),
        sentinel_ids=sentinel_ids(ids),
        stop_ids=(ids[IM_END], ids[EOS]),
        chat_template=template,
    )


def _sentencepiece(chunks: list[str], config: TokenizerConfig) -> Codec:
    import sentencepiece

    from hllm_jax.tokenizers.sentencepiece import SentencePieceCodec

    alphabet = alphabet_of(chunks, config)
    # The trainer leaves NUL out of the alphabet and out of every piece: so will it do with what NUL replaces.
    outside = re.compile(f"[^{re.escape(''.join(sorted(alphabet)))} ]")
    names = config.control_tokens
    ids: dict[str, Any] = {f"{name}_id": names.index(f"<|{name}|>") for name in ("pad", "unk", "bos", "eos")}
    spellings: dict[str, Any] = {f"{name}_piece": f"<|{name}|>" for name in ("pad", "unk", "bos", "eos")}
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # A last blank makes the space a piece in any corpus; without it a space would become U+2581.
            # The trainer takes line ends off the end of a sentence; NUL keeps them.
            sentence_iterator=iter([*(outside.sub("\0", chunk) + "\0" for chunk in chunks), "\0 \0"]),
            model_writer=written,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=1.0,
            max_sentencepiece_length=config.max_piece_length,
            split_digits=config.split_digits,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            max_sentence_length=16 * CHUNK,
            num_threads=16,  # a constant: with another number sums are rounded otherwise and pieces differ
            minloglevel=2,
            **ids,
            **spellings,
            control_symbols=list(names[4:]),
        )
    except RuntimeError as error:
        message = str(error)
        if found := re.search(r"Please set it to a value <= (\d+)", message):
            raise too_large(config, int(found[1])) from None
        if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
            raise TokenizerError(
                f"tokenizer.vocab_size={config.vocab_size} is too small: special tokens, 256 bytes and the "
                f"alphabet of this text need {found[1]}; raise it or lower tokenizer.alphabet_share"
            ) from None
        raise TokenizerError(f"SentencePiece could not train: {message}") from error
    return SentencePieceCodec(written.getvalue())


def _byte_bpe(chunks: list[str], config: TokenizerConfig) -> Codec:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trainee

    from hllm_jax.tokenizers.huggingface import TokenizersCodec

    pattern = PATTERN.replace("DIGITS", r"\p{N}" if config.split_digits else r" ?\p{N}+")
    trainee = Trainee(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainee.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in config.control_tokens],
        max_token_length=3 * config.max_piece_length,  # counted in bytes
        show_progress=False,
    )
    trainee.train_from_iterator(chunks, trainer)
    reached = trainee.get_vocab_size()
    if reached < config.vocab_size:
        raise too_large(config, reached)
    bos = config.control_tokens.index(BOS)
    processor = Frame.plain(bos).post_processor({bos: BOS})
    return TokenizersCodec({**json.loads(trainee.to_str()), "post_processor": processor})


def template_text(config: TokenizerConfig) -> str | None:
    """The chat template that a config asks for: its own file, or the built-in ChatML (for WordPiece none).

    Raises:
        TokenizerError: the file cannot be read.
    """
    if config.kind == "wordpiece" and not config.chat_template:
        return None
    path = Path(config.chat_template) if config.chat_template else CHATML
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"tokenizer.chat_template={path}: {error}") from None
