"""Training: deterministic, within its limits, and clear about what is not possible."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hllm_jax.config import Invalid
from hllm_jax.tokenizers import TokenizerConfig, TokenizerError, train_tokenizer
from hllm_jax.tokenizers.config import Kind
from hllm_jax.tokenizers.sampling import CHUNK, sample

KINDS: list[Kind] = ["unigram", "bpe", "byte_bpe"]
each_kind = pytest.mark.parametrize("kind", KINDS)
with_wordpiece = pytest.mark.parametrize("kind", [*KINDS, "wordpiece"])


@with_wordpiece
def test_same_text_same_tokenizer(kind: Kind, corpus: list[str]) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=400)
    first, second = (train_tokenizer(iter(corpus), config) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 400
    assert train_tokenizer(corpus[::2], config).fingerprint != first.fingerprint


@each_kind
def test_ids_of_the_special_tokens(kind: Kind, corpus: list[str]) -> None:
    tokenizer = train_tokenizer(
        corpus, TokenizerConfig(kind=kind, vocab_size=400, special_tokens=("<|think|>",))
    )
    assert list(tokenizer.special_ids.items()) == [
        ("<|pad|>", 0),
        ("<|unk|>", 1),
        ("<|bos|>", 2),
        ("<|eos|>", 3),
        ("<|im_start|>", 4),
        ("<|im_end|>", 5),
        ("<|think|>", 6),
    ]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert tokenizer.stop_ids == (5, 3)
    assert 6 not in tokenizer.encode("<|think|>")


@with_wordpiece
@pytest.mark.parametrize("texts", [[], [""], ["", " \n\t ", "\u3000"]])
def test_no_text_is_an_error(kind: Kind, texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match=rf"no text to train a tokenizer on: {len(texts)} records"):
        train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=300))


@with_wordpiece
def test_too_large_a_vocabulary_names_the_largest(kind: Kind, corpus: list[str]) -> None:
    with pytest.raises(TokenizerError, match="the largest possible is") as caught:
        train_tokenizer(corpus, TokenizerConfig(kind=kind, vocab_size=50_000))
    found = re.search(r"largest possible is (\d+)", str(caught.value))
    assert found
    largest = int(found[1])
    assert train_tokenizer(corpus, TokenizerConfig(kind=kind, vocab_size=largest)).vocab_size == largest


@each_kind
def test_the_smallest_vocabulary(kind: Kind) -> None:
    """One id beyond special tokens and bytes: trained, and every text still survives."""
    with pytest.raises(Invalid, match="at least 263"):
        TokenizerConfig(kind=kind, vocab_size=262)
    tokenizer = train_tokenizer(["ab ab\nab"], TokenizerConfig(kind=kind, vocab_size=263))
    assert tokenizer.vocab_size == 263
    for text in ("a b  c", " ", "▁", "ab\n好"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_many_characters_leave_room_for_words(kind: Kind, corpus: list[str]) -> None:
    """An alphabet larger than the vocabulary: the frequent characters get pieces, the others are bytes."""
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    config = TokenizerConfig(kind=kind, vocab_size=400, character_coverage=1.0)
    tokenizer = train_tokenizer([*corpus, rare], config)
    assert len(tokenizer.encode("the queen")) < len("the queen")
    assert tokenizer.decode(tokenizer.encode(rare)) == rare


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_characters_with_a_meaning_for_sentencepiece(kind: Kind, corpus: list[str]) -> None:
    text = "one▁two ▅ three\tfour\0five\n<|im_end|> <unk> </s> " * 30
    tokenizer = train_tokenizer([text, *corpus], TokenizerConfig(kind=kind, vocab_size=350))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2, 3, 4, 5} & set(ids)


@each_kind
def test_line_ends_join_punctuation(kind: Kind, corpus: list[str]) -> None:
    tokenizer = train_tokenizer(corpus, TokenizerConfig(kind=kind, vocab_size=480))
    assert len(tokenizer.encode(".\n")) == 1


@each_kind
def test_digits_one_by_one(kind: Kind, corpus: list[str]) -> None:
    texts = ["in 1999 and 1999 again, 1999\n"] * 200 + corpus
    tokenizer = train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=400))
    digits = [tokenizer.token_text(i) for i in tokenizer.encode("1999")]
    assert digits == ["1", "9", "9", "9"]


@each_kind
def test_mask_and_sentinels(kind: Kind, corpus: list[str]) -> None:
    config = TokenizerConfig(
        kind=kind, vocab_size=500, mask_token=True, special_tokens=("<|think|>",), sentinels=100
    )
    tokenizer = train_tokenizer(corpus, config)
    assert (tokenizer.mask_id, tokenizer.special_ids["<|mask|>"]) == (6, 6)
    assert tokenizer.sentinel_ids == tuple(range(8, 108))
    assert [tokenizer.token_text(i) for i in tokenizer.sentinel_ids[:2]] == ["<extra_id_0>", "<extra_id_1>"]
    assert (tokenizer.cls_id, tokenizer.sep_id) == (None, None)
    assert not {6, 8} & set(tokenizer.encode("<|mask|><extra_id_0>"))
    assert tokenizer.encode_for_model("the", "king") == (
        [2, *tokenizer.encode("the"), 2, *tokenizer.encode("king")],
        [0] * (1 + len(tokenizer.encode("the"))) + [1] * (1 + len(tokenizer.encode("king"))),
    )
    plain = train_tokenizer(corpus, TokenizerConfig(kind=kind, vocab_size=400))
    assert (plain.mask_id, plain.sentinel_ids) == (None, ())


def test_wordpiece(corpus: list[str]) -> None:
    config = TokenizerConfig(kind="wordpiece", vocab_size=300, sentinels=2, special_tokens=("[USER]",))
    tokenizer = train_tokenizer(corpus, config)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[USER]", "<extra_id_0>", "<extra_id_1>"]
    assert list(tokenizer.special_ids.items()) == [(name, i) for i, name in enumerate(names)]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 1, 2, 3)
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.bos_id) == (4, 3, None)
    assert tokenizer.sentinel_ids == (6, 7)
    assert tokenizer.vocab_size == 300
    assert tokenizer.chat_template is None
    assert not tokenizer.lossless
    a, b = tokenizer.encode("the king"), tokenizer.encode("画蛇")
    assert tokenizer.encode_for_model("the king") == ([2, *a, 3], [0] * (len(a) + 2))
    assert tokenizer.encode_for_model("the king", "画蛇") == (
        [2, *a, 3, *b, 3],
        [0] * (len(a) + 2) + [1] * (len(b) + 1),
    )
    assert tokenizer.encode_document("the king") == [*a, 3]
    # Blanks, case and accents are lost, words are not; one with an unknown letter is unknown as a whole.
    assert tokenizer.encode("  THE\tKíng\n") == a
    assert tokenizer.decode(tokenizer.encode("the king，画蛇")) == "the king ， 画 蛇"
    assert tokenizer.encode("king\u0416") == [1]
    assert not {0, 2, 3, 4} & set(tokenizer.encode("[CLS] [PAD] [MASK][SEP]"))
    # Every letter that stands inside words can do so in a word that was never seen.
    assert 1 not in tokenizer.encode("gnikeht")
    pieces = set(tokenizer.codec.vocabulary)
    assert {"k", "##k", "画"} <= pieces
    assert not {"##画", "##，"} & pieces


def test_wordpiece_with_case(corpus: list[str]) -> None:
    config = TokenizerConfig(kind="wordpiece", vocab_size=300, lowercase=False, alphabet_share=0.6)
    tokenizer = train_tokenizer(corpus, config)
    assert tokenizer.encode("The") != tokenizer.encode("the")
    assert tokenizer.decode(tokenizer.encode("The")) == "The"


def test_wordpiece_needs_room_for_its_letters(corpus: list[str]) -> None:
    config = TokenizerConfig(kind="wordpiece", vocab_size=60, alphabet_share=1.0)
    with pytest.raises(TokenizerError, match=r"5 special tokens and the \d+ letters of this text need \d+"):
        train_tokenizer(corpus, config)
    with pytest.raises(Invalid, match="at least 6"):
        TokenizerConfig(kind="wordpiece", vocab_size=5)


def test_the_sample_is_bounded_and_from_everywhere() -> None:
    seen = 0

    def stream() -> Iterator[str]:
        nonlocal seen
        for number in range(20_000):
            seen += 1
            yield f"record {number} of the stream\n"

    chunks, count = sample(stream(), 50_000)
    assert (seen, count) == (20_000, 20_000)  # one pass over all of it
    size = sum(len(chunk) for chunk in chunks)
    assert 40_000 < size <= 50_000
    numbers = [int(chunk.split()[1]) for chunk in chunks]
    for quarter in range(4):
        share = sum(quarter * 5000 <= number < (quarter + 1) * 5000 for number in numbers) / len(numbers)
        assert 0.2 < share < 0.3


def test_one_line_repeated_is_still_sampled() -> None:
    chunks, _ = sample(["the same line\n"] * 10_000, 1000)
    assert len(chunks) > 30


def test_long_texts_are_cut_without_loss() -> None:
    text = "word " * 1000 + "x" * 5000 + "\nline" * 1000
    chunks, count = sample([text], 10**6)
    assert count == 1
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= CHUNK


def test_texts_must_be_strings() -> None:
    with pytest.raises(TokenizerError, match="text 1 is a dict, not a string"):
        train_tokenizer(["fine", {"text": "no"}], TokenizerConfig(vocab_size=300))  # type: ignore[list-item]


def test_config_problems_come_together() -> None:
    with pytest.raises(Invalid) as caught:
        TokenizerConfig(
            vocab_size=9, character_coverage=1.5, alphabet_share=0, special_tokens=("<|eos|>", "x")
        )
    assert [field for field, _ in caught.value.problems] == [
        "vocab_size",
        "character_coverage",
        "alphabet_share",
        "special_tokens",
        "special_tokens",
    ]


def test_another_template(tmp_path, corpus: list[str]) -> None:
    path = tmp_path / "plain.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.content }}{% generation %}<|eos|>{% endgeneration %}{% endfor %}"
    )
    config = TokenizerConfig(vocab_size=300, chat_template=str(path))
    tokenizer = train_tokenizer(corpus, config)
    tokens, weights = tokenizer.render([{"role": "user", "content": "the"}])
    assert tokens == [*tokenizer.encode("the"), tokenizer.eos_id]
    assert weights[-1] == 1
    with pytest.raises(TokenizerError, match=r"tokenizer.chat_template=.*missing.jinja"):
        train_tokenizer(
            corpus, TokenizerConfig(vocab_size=300, chat_template=str(tmp_path / "missing.jinja"))
        )
