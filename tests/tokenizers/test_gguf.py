"""Tokenizers from GGUF metadata: byte-level BPE by pre-tokenizer name, and SentencePiece by scores."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerError, from_gguf, to_gguf
from hllm_jax.tokenizers.gguf_export import without_spans
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
    return {**named(**metadata), "tokenizer.chat_template": CHATML_DEFAULT}


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
    "glm4": ["we", "'ll", " see", " ", "199", "9", " it", "…\n\n"],
    "tekken": ["we", "'ll", " see", " ", "1", "9", "9", "9", " it", "…\n\n"],
    "gpt-4o": ["we'll", " see", " ", "199", "9", " it", "…\n\n"],
    "default": ["we", "'", "ll", " see", " ", "199", "9", " it", "…", "\n\n"],
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


def named(**values: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


T5 = {
    "model": "t5",
    "tokens": ["<pad>", "</s>", "<unk>", "\u2581", "a", "b", "ab", "\u2581a", "[PAD8]", "[PAD9]", "<new>"],
    "scores": [0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -4.0, -3.5, 0.0, 0.0, 0.0],
    "token_type": [3, 3, 2, 1, 1, 1, 1, 1, 5, 5, 4],
    "add_space_prefix": True,
    "remove_extra_whitespaces": True,
}


def test_unigram() -> None:
    """Scores are log probabilities: "▁" and "ab" cost 6, "▁a" and "b" 6.5; "▁a" and "ab" 7.5 against 9."""
    tokenizer = from_gguf(named(**T5))
    assert tokenizer.encode(" ab  aab ") == [3, 6, 7, 6]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id) == (1, 0, 2, None)
    assert tokenizer.encode_for_model("ab", "a") == ([3, 6, 1, 7, 1], [0] * 5)
    assert tokenizer.encode_document("a") == [7, 1]
    assert tokenizer.encode("xx a") == [3, 2, 7]
    assert tokenizer.encode("a<new>a") == [7, 10, 7]
    # The converter of llama.cpp knows no sentinels.
    assert tokenizer.sentinel_ids == ()
    assert list(tokenizer.special_ids) == ["<pad>", "</s>", "<unk>", "<extra_id_99>", "<extra_id_98>"]
    exact = from_gguf(named(**{**T5, "remove_extra_whitespaces": False, "add_eos_token": False}))
    assert exact.encode("a  b") == [7, 3, 3, 5]
    assert exact.encode_for_model("a") == ([7], [0])


def test_the_sentinels_of_a_converted_t5() -> None:
    blanks = [f"[PAD{k}]" for k in range(8, 8 + 128)]
    tokens = [*T5["tokens"][:8], *blanks]
    values = {**T5, "tokens": tokens, "scores": [*T5["scores"][:8], *[-1e4] * 128]}
    tokenizer = from_gguf(named(**{**values, "token_type": [*T5["token_type"][:8], *[5] * 128]}))
    assert tokenizer.sentinel_ids == tuple(range(8 + 99, 7, -1))
    assert tokenizer.vocab_size == 136
    assert tokenizer.encode("ab") == [3, 6]


BERT = {
    "model": "bert",
    "tokens": [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "\u2581the",
        "s",
        "\u2581é",
        "\u2581e",
        "\u2581画",
        "[x]",
    ],
    "token_type": [3, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1],
    **{"bos_token_id": 2, "unknown_token_id": 1, "seperator_token_id": 3, "padding_token_id": 0},
    "mask_token_id": 4,
}


def test_wordpiece() -> None:
    tokenizer = from_gguf(named(**BERT))
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id) == (2, 3, 4, 0)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (1, None, 3)
    assert tokenizer.encode("The THEs é 画画 king") == [5, 5, 6, 8, 9, 9, 1]
    assert tokenizer.encode_for_model("the", "画") == ([2, 5, 3, 9, 3], [0, 0, 0, 1, 1])
    assert tokenizer.continues_word.tolist() == [False] * 6 + [True] + [False] * 4
    cased = from_gguf(named(**BERT, **{"normalizer.lowercase": False}))
    assert cased.encode("The the é") == [1, 5, 7]
    accents = from_gguf(named(**BERT, **{"normalizer.strip_accents": False}))
    assert accents.encode("THE É") == [5, 7]


def test_roberta(trained: dict[str, Tokenizer]) -> None:
    metadata = metadata_of(trained["byte_bpe"], pre="roberta-bpe", mask_token_id=1, padding_token_id=0)
    tokenizer = from_gguf(metadata)
    ids = tokenizer.encode("the")
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (4, 5, 1)
    assert tokenizer.encode_for_model("the") == ([4, *ids, 5], [0] * (len(ids) + 2))
    assert tokenizer.encode_for_model("the", "the")[0] == [4, *ids, 5, 5, *ids, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**T5, "scores": None}, "scores has 0 entries for 11 tokens"),
        ({**T5, "tokens": [*T5["tokens"][:10], "a"]}, "tokens lists 'a' twice"),
        ({**T5, "unknown_token_id": 11}, "the unk id 11 is outside the vocabulary of 11 ids"),
        ({**BERT, "seperator_token_id": None}, "no tokenizer.ggml.seperator_token_id"),
        ({**BERT, "unknown_token_id": None}, "no tokenizer.ggml.unknown_token_id"),
        ({"model": "bert", "tokens": ["a"]}, "no tokenizer.ggml.bos_token_id"),
    ],
)
def test_incomplete_encoders(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        from_gguf(named(**values))


def test_our_own_into_gguf(trained: dict[str, Tokenizer]) -> None:
    """SentencePiece BPE goes as it is; the others have no form there, and say so."""
    own = trained["bpe"]
    metadata = to_gguf(own)
    again = from_gguf(metadata)
    texts = ["the king", "  画蛇\n\t", "\u2581a", "<|im_end|>", "x" * 3000]
    assert again.encode_batch(texts) == own.encode_batch(texts)
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "king"}]
    assert again.render(talk)[0] == own.render(talk)[0]
    assert (again.bos_id, again.eos_id, again.pad_id, again.add_bos) == (2, 3, 0, True)
    assert again.stop_ids == own.stop_ids
    assert metadata["tokenizer.ggml.scores"].dtype == "float32"
    with pytest.raises(TokenizerError, match="no SentencePiece unigram that falls back to bytes"):
        to_gguf(trained["unigram"])
    with pytest.raises(TokenizerError, match="no name for the way in which this byte-level tokenizer cuts"):
        to_gguf(trained["byte_bpe"])


def test_templates_of_others_know_no_generation_blocks(trained: dict[str, Tokenizer]) -> None:
    written = to_gguf(trained["bpe"])["tokenizer.chat_template"]
    assert "generation %}" not in written
    template = "{%- generation -%} a {% endgeneration %}{%+generation%}b{%endgeneration-%} generation"
    without = "{%- if true -%} a {% endif %}{%+if true%}b{%endif-%} generation"
    assert without_spans(template) == without


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
