"""Sentences and words of English and Chinese: nothing lost, and found again in the tokens."""

from __future__ import annotations

import numpy as np
import pytest

from hllm_jax.data import DataError
from hllm_jax.data.boundaries import (
    Boundaries,
    join_segmented,
    spaced_words,
    split_sentences,
    word_splitter,
)
from hllm_jax.testing.tokenizer import SpecialByteTokenizer


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("今天天气很好！“你去吗？”他问。走吧", ["今天天气很好！", "“你去吗？”", "他问。", "走吧"]),
        ("我说：好……走吧。", ["我说：好……", "走吧。"]),
        ("Dr. Smith met J. R. Jones, i.e. him.", ["Dr. Smith met J. R. Jones, i.e. him."]),
        ("It costs 3.14 euros. Cheap.", ["It costs 3.14 euros.", " Cheap."]),
        ('He said "No!" Then he left...', ['He said "No!"', " Then he left..."]),
        ("A title\n\nA text. More.\n", ["A title\n\n", "A text.", " More.\n"]),
        ("没有句号", ["没有句号"]),
        ("  \n ", ["  \n "]),
        ("", []),
        ("中文。English follows. 又是中文？", ["中文。", "English follows.", " 又是中文？"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_sentences_joined_are_the_text() -> None:
    rng = np.random.default_rng(0)
    alphabet = list("ab c.!?。！？…”\"')\n\t A1")
    for _ in range(2000):
        text = "".join(rng.choice(alphabet, rng.integers(0, 30)))
        parts = split_sentences(text)
        assert "".join(parts) == text
        assert len(parts) < 2 or all(part.strip() for part in parts)


def test_segmented_chinese_is_joined_and_english_is_not() -> None:
    text = "我 喜欢 机器 学习 ， deep learning 很 好 。"
    assert join_segmented(text) == "我喜欢机器学习， deep learning 很好。"
    words = ["我", "喜欢", "机器", "学习", "，", " deep", " learning", " 很", "好", "。"]
    assert spaced_words(text) == words
    assert "".join(words) == join_segmented(text)


def test_words_and_sentences_in_the_tokens_of_a_lossless_tokenizer() -> None:
    tokenizer = SpecialByteTokenizer()
    boundaries = Boundaries(tokenizer)
    words = ["猫", "喜欢", " fish", "。"]
    ids = tokenizer.encode("".join(words))
    begins = np.zeros(len(ids), bool)
    begins[[0, 3, 9, 14]] = True
    assert (boundaries.words(words, ids) == begins).all()
    kept, starts = boundaries.sentences("好。 Yes.", tokenizer.encode("好。 Yes."))
    assert kept == tokenizer.encode("好。 Yes.")
    assert starts.tolist() == [0, 6]


class Merging(SpecialByteTokenizer):
    """Two characters are one token, so tokens reach over boundaries."""

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        return [5 + byte for byte in data[::2]]

    @property
    def byte_lengths(self) -> np.ndarray:
        return np.full(self.vocab_size, 2, np.int32)


def test_a_token_that_reaches_over_a_boundary_belongs_to_the_word_it_begins_in() -> None:
    tokenizer = Merging()
    boundaries = Boundaries(tokenizer)
    # The tokens are ab, cd, de, fg; the second word begins inside of the second.
    begins = boundaries.words(["abc", "ddefg"], tokenizer.encode("abcddefg"))
    assert begins.tolist() == [True, False, True, False]


class Lossy(SpecialByteTokenizer):
    """Forgets blanks and case, as WordPiece does."""

    def __init__(self) -> None:
        super().__init__()
        self.lossless = False

    def encode(self, text: str) -> list[int]:
        return super().encode("".join(text.lower().split()))


def test_a_lossy_tokenizer_is_asked_part_by_part() -> None:
    boundaries = Boundaries(Lossy())
    ids, starts = boundaries.sentences("Eins. Zwei!   \n", Lossy().encode("Eins. Zwei!"))
    assert Lossy().decode(ids) == "eins.zwei!"
    assert starts.tolist() == [0, 5]
    assert boundaries.words(["Eins", ".", " Zwei"], Lossy().encode("Eins. Zwei")).tolist() == [
        *(True, False, False, False),
        True,
        *(True, False, False, False),
    ]


class Contextual(Lossy):
    """Writes a word otherwise where another follows it."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("ab", "x"))


def test_where_words_alone_have_other_tokens_the_tokenizers_rule_holds() -> None:
    ids = Contextual().encode("cab d")  # "c" and "ab d" alone would give the same; "ca" and "b d" do not
    begins = Boundaries(Contextual()).words(["ca", "b", " d"], ids)
    assert (begins == ~Contextual().continues_word[ids]).all()


def test_a_missing_segmenter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(DataError, match="pip install rjieba, or give text"):
        word_splitter("rjieba")


def test_rjieba_words_joined_are_the_text() -> None:
    pytest.importorskip("rjieba")
    text = "我来到北京清华大学， and then home。"
    words = word_splitter("rjieba")(text)
    assert "".join(words) == text
    assert "清华大学" in words
