"""Where sentences and words begin: in a text, and in the tokens that the text becomes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hllm_jax.tokenizers.tokenizer import Tokenizer

CLOSING = "”’」』）】》〉\"')\\]}"
# A Chinese end mark ends a sentence anywhere, a Latin one before white space; a line end always does. Marks
# that follow each other, and quotation marks and brackets after them, belong to the sentence they close.
END = re.compile(rf"(?:[。！？…]+[{CLOSING}]*|[.!?]+[{CLOSING}]*(?=\s)|(?<=\S)(?=\s*\n))(?:[^\S\n]*\n\s*)?")
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|No|Fig|Eq|vs|cf|al|etc|e\.g|i\.e|ca|approx|Inc|Ltd"
    r"|Co|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|U\.S)\.$"
)
HAN = r"[\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
BETWEEN_HAN = re.compile(rf"(?<={HAN})[ \t]+(?={HAN})")

WORD = re.compile(rf"{HAN}|(?:(?!{HAN})\w)+|[^\w\s]")

Segmenter = Literal["spaces", "rjieba"]


def split_sentences(text: str) -> list[str]:
    """The sentences of an English or Chinese text; joined they are the text again.

    A blank between two sentences stands at the beginning of the second one, where byte-level tokenizers want
    it; line ends stay with the sentence before them.
    """
    found: list[str] = []
    start = 0
    for end in END.finditer(text):
        at = end.end()
        if at == start or at == len(text) or not text[start:at].strip():
            continue
        if "\n" not in end[0] and ABBREVIATION.search(text[max(start, at - 12) : at]):
            continue
        if not text[at:].strip():
            break
        found.append(text[start:at])
        start = at
    if start < len(text):
        found.append(text[start:])
    return found


def join_segmented(text: str) -> str:
    """A text whose words are separated by spaces, as it is written: without spaces between Chinese words."""
    return BETWEEN_HAN.sub("", text)


def word_splitter(segmenter: Segmenter) -> Callable[[str], list[str]]:
    """A function from a text to its words, which joined are the text (`spaces`: what `join_segmented` makes
    of it); blanks belong to the word after them, punctuation is a word.

    Raises:
        DataError: rjieba is not installed.
    """
    if segmenter == "spaces":
        return spaced_words
    try:
        # A Chinese segmenter in Rust; an optional package, imported where it is used.
        import rjieba  # pyrefly: ignore
    except ImportError as error:
        raise DataError(
            "objective.masked_lm.whole_words=rjieba asks for rjieba, which is not installed: "
            "pip install rjieba, or give text whose words are separated by spaces (whole_words=spaces)"
        ) from error
    cut: Callable[[str], list[str]] = rjieba.cut
    return lambda text: join_blanks(cut(text))


def spaced_words(text: str) -> list[str]:
    """The words of a text in which spaces separate them; those between Chinese words are left out."""
    words: list[str] = []
    end = 0
    for blank in BETWEEN_HAN.finditer(text):
        words += re.findall(r"\s*\S+|\s+$", text[end : blank.start()])
        end = blank.end()
    return words + re.findall(r"\s*\S+|\s+$", text[end:])


def join_blanks(words: Sequence[str]) -> list[str]:
    """The same words, each with the white space before it."""
    found: list[str] = []
    blank = ""
    for word in words:
        blank += word
        if not word.isspace():
            found.append(blank)
            blank = ""
    return [*found, blank] if blank else found


class Boundaries:
    """Finds where the parts of a text (sentences, words) begin in its tokens.

    Tokens of a lossless tokenizer say how many bytes each stands for; a token that reaches over a boundary
    belongs to the part in which it begins. For one that is not lossless (WordPiece lower-cases and forgets
    blanks) the parts are encoded one by one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.byte_lengths = np.asarray(tokenizer.byte_lengths, np.int64)

    def by_bytes(self, ids: Sequence[int], parts: Sequence[str]) -> np.ndarray | None:
        """int64, ascending: the first token of every part that has one; None if the bytes do not tell."""
        if not self.tokenizer.lossless:
            return None
        ends = np.cumsum(self.byte_lengths[np.asarray(ids, np.int64)])
        wanted = np.cumsum([len(part.encode()) for part in parts])
        # Some tokenizers put a space before every text.
        ahead = int(ends[-1] - wanted[-1]) if len(ends) else 0
        if ahead not in (0, 1) or (ahead and self.tokenizer.token_bytes(int(ids[0]))[:1] != b" "):
            return None
        starts = np.searchsorted(np.r_[0, ends[:-1]], np.r_[0, wanted[:-1] + ahead], "left")
        return np.unique(starts[starts < len(ids)])

    def one_by_one(self, parts: Sequence[str]) -> tuple[list[int], np.ndarray]:
        """The tokens of the parts joined, and the first token of every part that has one."""
        encoded = [ids for ids in self.tokenizer.encode_batch(list(parts)) if ids]
        joined = [token for ids in encoded for token in ids]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        return joined, np.cumsum(lengths) - lengths

    def sentences(self, text: str, ids: Sequence[int]) -> tuple[list[int], np.ndarray]:
        """The tokens of a text, and int64 [sentences]: the first token of each; `ids` is `encode(text)`."""
        parts = split_sentences(text)
        starts = self.by_bytes(ids, parts)
        return self.one_by_one(parts) if starts is None else (list(ids), starts)

    def offsets(self, text: str, ids: Sequence[int]) -> tuple[list[int], np.ndarray]:
        """The tokens of a text, and int64 [tokens, 2]: the characters (from, to) that each stands for.

        Of a tokenizer that is not lossless, the tokens of a word have the characters of the whole word; where
        words alone have other tokens than in the text, theirs are taken.
        """
        if self.by_bytes(ids, [text]) is not None:
            ends = np.cumsum(self.byte_lengths[np.asarray(ids, np.int64)])
            sizes = np.array([len(character.encode()) for character in text], np.int64)
            ahead = int(ends[-1] - sizes.sum())
            stops = np.maximum(ends - ahead, 1)
            starts = np.maximum(np.r_[0, ends[:-1]] - ahead, 0)
            edges = np.cumsum(sizes)
            first, last = (np.searchsorted(edges, at, "right") for at in (starts, stops - 1))
            return list(ids), np.stack([first, last + 1], axis=1)
        found: list[int] = []
        spans: list[tuple[int, int]] = []
        for pattern in (WORD, re.compile(r"\S+")):
            words = list(pattern.finditer(text))
            encoded = self.tokenizer.encode_batch([word[0] for word in words])
            found = [token for tokens in encoded for token in tokens]
            spans = [word.span() for word, tokens in zip(words, encoded, strict=True) for _ in tokens]
            if found == list(ids):
                break
        return found, np.array(spans, np.int64).reshape(-1, 2)

    def words(self, words: Sequence[str], ids: Sequence[int]) -> np.ndarray:
        """bool [tokens]: which tokens of `ids`, the encoded words joined, begin a word.

        Where the words do not become these tokens one by one either, the tokenizer's own rule holds.
        """
        begins = np.zeros(len(ids), bool)
        starts = self.by_bytes(ids, words)
        if starts is None:
            joined, starts = self.one_by_one(words)
            if joined != list(ids):
                table: Any = self.tokenizer.continues_word
                return ~np.asarray(table)[np.asarray(ids, np.int64)]
        begins[starts] = True
        return begins
