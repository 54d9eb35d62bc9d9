"""Short Chinese texts for `fortune` (Debian package `fortunes-zh`): sayings, poems, notes on Debian."""

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
    name="fortunes-zh",
    version="2.98",
    file="fortunes-zh_2.98_all.deb",
    sha256="211c5ddee59d0ae74ce01cbfd02f7c8714740bae1835d5661eb2254edd739105",
    client="apt",
)
HOLDOUT = 0.03
FILES = ("chinese", "song100", "tang300")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def fortunes(archive: Path) -> Iterator[Example]:
    """One record a text, without its colours; exact repeats are dropped."""
    seen = set[bytes]()
    for _, content in members(archive, *(f"./usr/share/games/fortunes/{name}" for name in FILES)):
        for part in re.split(r"(?m)^%$", COLOUR.sub("", content.decode("utf-8"))):
            text = re.sub(r"[ \t]+$", "", part, flags=re.MULTILINE).strip("\n")
            key = Record(text=text).content_hash()
            if text and key not in seen:
                seen.add(key)
                yield split_by(key, HOLDOUT), {"text": text}


CORPORA = {
    "fortunes-zh": Corpus(
        name="fortunes-zh",
        version="1.0.0",
        kind="text",
        language="Chinese",
        summary="Sayings of the classics, Tang and Song poems, notes on Debian, formulas.",
        licence="GPL-3.0+; older texts public domain",
        package=PACKAGE,
        train=5495,
        validation=166,
        examples=fortunes,
        caveat="The 300 Tang poems stand, in traditional characters, in tang-song-poems too.",
    )
}
