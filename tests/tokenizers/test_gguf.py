"""Tokenizers from GGUF metadata: byte-level BPE by pre-tokenizer name, and SentencePiece by scores."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerError, from_gguf
from tests.tokenizers.foreign import CHATML_DEFAULT


def metadata_of(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    """What a converter would write for one of our byte-level tokenizers."""
    content = json.loads(tokenizer.codec.files()["tokenizer.json"])
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    special = set(tokenizer.special_ids)
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3 if token in special else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in content["model"]["merges"]],
        "bos_token_id": 4,
        "eos_token_id": 5,
        "padding_token_id": 5,
        "add_bos_token": False,
    } | changes
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
    return {**named, "tokenizer.chat_template": CHATML_DEFAULT}


def test_byte_level_bpe(trained: dict[str, Tokenizer]) -> None:
    own = trained["byte_bpe"]
    tokenizer = from_gguf(metadata_of(own))
    assert tokenizer.vocab_size == own.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.add_bos) == (4, 5, 5, False)
    assert tokenizer.stop_ids == (5,)
    assert list(tokenizer.special_ids.items()) == list(own.special_ids.items())
    for text in ("the king said", "the\n\nking", "春风", "a 1999\t<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("the king said") == own.encode("the king said")
    # One id is begin of document, begin of turn; another is pad, end of document, end of turn.
    tokens, weights = tokenizer.render(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "the"}]
    )
    assert [token for token, weight in zip(tokens, weights, strict=True) if weight] == [
        *tokenizer.encode("the"),
        5,
    ]


# Where the pre-tokenizers differ, by the published regular expressions and rules.
PIECES = {
    "gpt-2": ["we", "'ll", " see", " 1999", " it", "…", "\n\n"],
    "smollm": ["we", "'ll", " see", " ", "1", "9", "9", "9", " it", "…", "\n\n"],
    "llama-bpe": ["we", "'ll", " see", " ", "199", "9", " it", "…\n\n"],
    "qwen2": ["we", "'ll", " see", " ", "1", "9", "9", "9", " it", "…\n\n"],
}


@pytest.mark.parametrize("pre", PIECES)
def test_pre_tokenizers(trained: dict[str, Tokenizer], pre: str) -> None:
    tokenizer = from_gguf(metadata_of(trained["byte_bpe"], pre=pre))
    model = tokenizer.codec._model
    text = "we'll see 1999 it…\n\n"
    spans = [text[start:end] for _, (start, end) in model.pre_tokenizer.pre_tokenize_str(text)]
    assert spans == PIECES[pre]


def test_user_defined_tokens_are_text(trained: dict[str, Tokenizer]) -> None:
    metadata = metadata_of(trained["byte_bpe"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<think>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    tokenizer = from_gguf(metadata)
    assert tokenizer.encode("<think>") == [480]
    assert tokenizer.decode(tokenizer.encode("a<think>é")) == "a<think>é"
    assert tokenizer.token_bytes(480) == b"<think>"


def test_sentencepiece(trained: dict[str, Tokenizer]) -> None:
    own = trained["bpe"]
    processor = own.codec._processor
    size = own.vocab_size

    def kind(i: int) -> int:
        return (
            2
            if processor.is_unknown(i)
            else 3
            if processor.is_control(i)
            else 6
            if processor.is_byte(i)
            else 1
        )

    metadata = {
        "model": "llama",
        "tokens": [processor.id_to_piece(i) for i in range(size)],
        "scores": [processor.get_score(i) for i in range(size)],
        "token_type": [kind(i) for i in range(size)],
        "bos_token_id": 2,
        "eos_token_id": 3,
        "eot_token_id": 5,
    }
    for prefix in (False, True):
        named = {f"tokenizer.ggml.{k}": v for k, v in {**metadata, "add_space_prefix": prefix}.items()}
        tokenizer = from_gguf(named)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.add_bos) == (2, 3, 3, True)
        assert tokenizer.stop_ids == (5, 3)
        for text in ("the king", " the\n春风 0 <|im_end|>", "▁" if not prefix else "x"):
            assert tokenizer.encode(text) == own.encode((" " if prefix else "") + text)
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "tokens is missing or empty"),
        ({"model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'; known are"),
        ({"pre": "unheard-of"}, "tokenizer.ggml.pre is 'unheard-of'; known are .*smollm"),
        ({"token_type": [1]}, "token_type has 1 entries for 480 tokens"),
        ({"merges": None}, "tokenizer.ggml.merges is missing or empty"),
        ({"merges": ["a b", "Ġ zz"]}, r"tokenizer.ggml.merges\[0\] is 'a b', whose result is no token"),
        ({"eos_token_id": None}, "no tokenizer.ggml.eos_token_id"),
        ({"eos_token_id": 480}, "the eos id 480 is outside the vocabulary of 480 ids"),
        ({"model": "llama", "scores": [0.0]}, "tokenizer.ggml.scores has 1 entries for 480 tokens"),
        ({"model": "llama", "scores": [0.0] * 480}, "marks 0 unknown tokens, it must be one"),
    ],
)
def test_incomplete_metadata(trained: dict[str, Tokenizer], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        from_gguf(metadata_of(trained["byte_bpe"], **changes))


def test_a_spelling_listed_twice(trained: dict[str, Tokenizer]) -> None:
    metadata = metadata_of(trained["byte_bpe"])
    metadata["tokenizer.ggml.tokens"][300] = metadata["tokenizer.ggml.tokens"][301]
    with pytest.raises(TokenizerError, match=r"tokens lists .* twice"):
        from_gguf(metadata)
