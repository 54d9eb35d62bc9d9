"""Small talk and questions in English and Chinese (package `chatterbot-corpus`)."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import yaml

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.packages import Package
from hllm_jax.data.records import Record, split_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="chatterbot-corpus",
    version="1.3.3",
    file="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
HOLDOUT = 0.05
ROLES = ("user", "assistant")
# In these files an entry is a question with several answers to choose from, not a sequence of turns.
ALTERNATIVES = {"english": ("/computers.yml", "/emotion.yml"), "chinese": ()}


def conversations(archive: Path, language: str) -> Iterator[Example]:
    """Turns alternate, the user first; a last turn without an answer and exact repeats are dropped."""
    seen = set[str]()
    for name, content in members(archive, f"chatterbot_corpus/data/{language}/*.yml"):
        # BaseLoader: every scalar is a string ("Yes" is no truth value here).
        for turns in yaml.load(content.decode("utf-8"), Loader=yaml.BaseLoader)["conversations"]:
            if not isinstance(turns, list):
                continue  # one entry of the package lost its list
            texts = [turn.strip() for turn in turns if isinstance(turn, str) and turn.strip()]
            for said in answered(texts, alternatives=name.endswith(ALTERNATIVES[language])):
                known = json.dumps(said, ensure_ascii=False)
                if known not in seen:
                    seen.add(known)
                    # The first question decides: its other answers must not stand on the other side.
                    key = Record(text=said[0].casefold()).content_hash()
                    messages = [{"role": ROLES[i % 2], "content": text} for i, text in enumerate(said)]
                    yield split_by(key, HOLDOUT), {"messages": messages}


def answered(texts: list[str], *, alternatives: bool) -> list[list[str]]:
    """The conversations of one entry: its turns up to the last answer, or its question with each answer."""
    if alternatives:
        return [[texts[0], answer] for answer in texts[1:]]
    complete = texts[: len(texts) // 2 * 2]
    return [complete] if complete else []


def corpus(name: str, folder: str, language: str, train: int, validation: int, caveat: str) -> Corpus:
    """The entry of one language."""
    return Corpus(
        name=name,
        version="1.0.0",
        kind="chat",
        language=language,
        summary="Short conversations: small talk, facts, jokes, technical support.",
        licence="BSD-3-Clause",
        package=PACKAGE,
        train=train,
        validation=validation,
        examples=functools.partial(conversations, language=folder),
        caveat=caveat,
    )


CORPORA = {
    "chatterbot-en": corpus("chatterbot-en", "english", "English", 1042, 40, ""),
    "chatterbot-zh": corpus(
        "chatterbot-zh", "chinese", "Chinese", 431, 34, "Many answers are machine translations."
    ),
}
