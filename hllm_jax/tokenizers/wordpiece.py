"""Training of a WordPiece vocabulary, for BERT and its like."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from hllm_jax.tokenizers import definitions
from hllm_jax.tokenizers.config import WORDPIECE_TOKENS
from hllm_jax.tokenizers.definitions import AddedToken, Content
from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.sampling import alphabet_of, too_large

if TYPE_CHECKING:
    from hllm_jax.tokenizers.config import TokenizerConfig

# Begins a word while pairs are counted. BERT's normalizer leaves no such character in a text.
BEGIN = "\ufdd0"


def train_wordpiece(chunks: list[str], config: TokenizerConfig) -> Content:
    """A tokenizer.json with BERT's rules and a vocabulary for these texts.

    Pieces are those that byte-pair encoding over characters merges within words, as in the `tokenizers`
    library (whose own trainer gives another vocabulary every time, because it numbers the letters in the
    order of a hash table). A piece that begins a word is itself, one inside it gets `##`.

    Args:
        chunks: what to train on.
        config: sizes and special tokens.

    Raises:
        TokenizerError: the vocabulary is smaller than the alphabet needs, or larger than the texts support.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    rules = definitions.bert_normalizer(config.lowercase, strip_accents=None)
    normalize = normalizers.BertNormalizer(lowercase=config.lowercase).normalize_str
    words = pre_tokenizers.BertPreTokenizer()
    chunks = [normalize(chunk) for chunk in chunks]
    alphabet = sorted(alphabet_of(chunks, config))
    trainee = Tokenizer(models.BPE())
    begin = pre_tokenizers.Metaspace(replacement=BEGIN, prepend_scheme="always", split=False)
    trainee.pre_tokenizer = pre_tokenizers.Sequence([words, begin])
    trainer: Any = trainers.BpeTrainer(
        vocab_size=config.vocab_size + len(alphabet) + 2,
        min_frequency=2,
        initial_alphabet=[BEGIN, *alphabet],
        limit_alphabet=len(alphabet) + 1,
        max_token_length=config.max_piece_length + 1,
        show_progress=False,
    )
    # A word with a character outside the alphabet is unknown as a whole: no piece of it is worth counting.
    outside = re.compile(f"[^{re.escape(''.join(alphabet))}\\s]")
    usable = (
        " ".join(word for word in chunk.split() if not outside.search(word))
        if outside.search(chunk)
        else chunk
        for chunk in chunks
    )
    trainee.train_from_iterator(usable, trainer)
    merges = json.loads(trainee.to_str())["model"]["merges"]

    def inside(character: str) -> bool:
        text = normalize("a" + character)
        return text == "a" + character and len(words.pre_tokenize_str(text)) == 1

    names = config.control_tokens
    letters = [*alphabet, *(f"##{character}" for character in alphabet if inside(character))]
    if len(names) + len(letters) >= config.vocab_size:
        raise TokenizerError(
            f"tokenizer.vocab_size={config.vocab_size} is too small: {len(names)} special tokens and the "
            f"{len(letters)} letters of this text need {len(names) + len(letters) + 1}; raise it or lower "
            "tokenizer.alphabet_share"
        )
    merged = ("".join(pair) for pair in merges)
    pieces = (text[1:] if text.startswith(BEGIN) else f"##{text}" for text in merged)
    entries = list(dict.fromkeys((*names, *letters, *pieces)))[: config.vocab_size]
    if len(entries) < config.vocab_size:
        raise too_large(config, len(entries))
    ids = {text: i for i, text in enumerate(entries)}
    return definitions.wordpiece(
        ids,
        WORDPIECE_TOKENS[1],
        rules,
        added=[AddedToken(ids[name], name) for name in names],
        frame=Frame.of("[CLS] A [SEP]", "[CLS] A [SEP] B:1 [SEP]:1", ids),
    )
