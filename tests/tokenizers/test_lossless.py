"""Text survives: every string, in every kind, in batches, in windows and in streams."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerError

HARD = [
    "",
    " ",
    "\n",
    "\n\n\n",
    "\r\n\r",
    "\t\t x",
    "\0",
    "a\0b\0\0",
    "  leading and trailing  ",
    "▁",
    "▁▁ ▁a▁ b▁",
    "▅",
    "，！（）？ＡＢＣ１２３　全角",
    "汉字漢字カタカナ한국어",
    "😀👩‍👩‍👧‍👦🇨🇳🏴‍☠️",
    "e\u0301 é \u200d \ufeff \u202e",
    "\ufdd0 \ufdd0\ufdd1 \ufdd0\ufdd3 \ufffe \uffff \U0010ffff",
    "\ufffd",
    "<s></s><unk><pad><0x41><|unk|>",
    "<|im_start|>user\n<|im_end|><|bos|><|eos|><|pad|>",
    "if x:\n\treturn {'a': 1.5e-3}  # ok\n",
    "x" * 3000,
    "中" * 3000,
    "▁" * 50,
    " " * 2500,
]


def random_text(chance: random.Random) -> str:
    pools = (
        "abc XYZ",
        "0123456789.,;",
        " \n\t\r\0",
        "▁▅<|>_im_endstart",
        "画蛇添足，。！",
        "\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4\uffff",
    )
    letters: list[str] = []
    for _ in range(chance.randrange(60)):
        if chance.random() < 0.7:
            letters.append(chance.choice(chance.choice(pools)))
        else:
            code = chance.randrange(0x110000 - 0x800)
            letters.append(chr(code if code < 0xD800 else code + 0x800))
    return "".join(letters)


def test_every_text_survives_and_none_becomes_a_special_token(tokenizer: Tokenizer) -> None:
    chance = random.Random(1)
    texts = HARD + [random_text(chance) for _ in range(600)]
    special = set(tokenizer.special_ids.values())
    assert len(special) == 6
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(np.array(ids, np.int32), skip_special=True) == text
        assert special.isdisjoint(ids)
        assert sum(tokenizer.byte_lengths[ids]) == len(text.encode())
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_a_stream_is_the_decoded_whole(tokenizer: Tokenizer) -> None:
    chance = random.Random(2)
    for _ in range(200):
        # Any ids, not only those of a text: characters are cut, special tokens stand between the halves.
        ids = [chance.randrange(tokenizer.vocab_size) for _ in range(30)] + tokenizer.encode("好😀")[:-1]
        for skip_special in (False, True):
            stream = tokenizer.stream(skip_special)
            pushed = [stream.push(token) for token in ids]
            assert "".join([*pushed, stream.flush()]) == tokenizer.decode(ids, skip_special)


def test_a_stream_never_shows_half_a_character(tokenizer: Tokenizer) -> None:
    text = "好😀é, 画蛇添足🏴‍☠️"
    stream = tokenizer.stream()
    shown = ""
    for token in tokenizer.encode(text):
        shown += stream.push(token)
        assert text.startswith(shown)
    assert shown + stream.flush() == text


def test_windows_do_not_change_ids(trained: dict[str, Tokenizer], corpus: list[str]) -> None:
    """Long texts are encoded in windows; SentencePiece itself, over the whole text, is the oracle."""
    book = "".join(corpus)
    texts = [book, book.replace(" ", ""), "aab" * 2000 + book[:3000], " " * 3000 + "x", "。\n" * 1500]
    for kind in ("unigram", "bpe"):
        processor = trained[kind].codec._processor
        for text in texts:
            assert len(text) > 2000
            assert trained[kind].encode(text) == processor.encode(text)


def test_half_a_surrogate_pair_is_refused_by_name(tokenizer: Tokenizer) -> None:
    for text in ("ab\ud83dc", "\udc00" + "x" * 5000):
        with pytest.raises(TokenizerError, match=r"lone surrogate U\+D[8C][0-9A-F]{2} at character \d"):
            tokenizer.encode(text)
        with pytest.raises(TokenizerError, match="lone surrogate"):
            tokenizer.encode_batch(["fine", text])


@pytest.mark.parametrize("wrong", [b"bytes", 5, None, ["list"]])
def test_only_strings_are_encoded(tokenizer: Tokenizer, wrong: object) -> None:
    for call in (lambda: tokenizer.encode(wrong), lambda: tokenizer.encode_batch(["x", wrong])):
        with pytest.raises(TokenizerError, match=f"must be a string, not {type(wrong).__name__}"):
            call()
    with pytest.raises(TokenizerError, match="encode_batch takes a list"):
        tokenizer.encode_batch("one text")


@pytest.mark.parametrize("wrong", [-1, 480, 10**6])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, wrong: int) -> None:
    for call in (lambda: tokenizer.decode([7, wrong]), lambda: tokenizer.stream().push(wrong)):
        with pytest.raises(IndexError, match=f"id {wrong} is outside the vocabulary of 480"):
            call()
    with pytest.raises(IndexError, match="outside the vocabulary"):
        tokenizer.token_bytes(wrong)


def test_documents_and_prompts(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the king")
    assert tokenizer.encode_prompt("the king") == [tokenizer.bos_id, *ids]
    assert tokenizer.encode_document("the king") == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.encode_document("") == [tokenizer.bos_id, tokenizer.eos_id]
    assert tokenizer.pad_id not in (tokenizer.bos_id, tokenizer.eos_id, *tokenizer.stop_ids)
    assert tokenizer.decode(tokenizer.encode_document("the king")) == "<|bos|>the king<|eos|>"
    assert tokenizer.decode(tokenizer.encode_document("the king"), skip_special=True) == "the king"


def test_display(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_text(tokenizer.eos_id) == "<|eos|>"
    assert [tokenizer.token_text(i) for i in tokenizer.encode("\0")] == ["<0x00>"]
    assert "".join(tokenizer.token_text(i) for i in tokenizer.encode("😀")) == "<0xF0><0x9F><0x98><0x80>"
    assert "".join(tokenizer.token_text(i) for i in tokenizer.encode("the\nking")) == "the<0x0A>king"
    assert tokenizer.byte_lengths.dtype == np.int32
    assert tokenizer.byte_lengths.shape == (480,)
    assert tokenizer.byte_lengths[tokenizer.eos_id] == 0
