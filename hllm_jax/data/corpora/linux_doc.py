"""The documentation of Linux 6.1 (Debian package `linux-doc-6.1`): English, and its Chinese translations.

A record begins with its path, so a translation is found by it: what stands in
`Documentation/translations/zh_CN/process/howto.rst` translates `Documentation/process/howto.rst`.
"""

from __future__ import annotations

import functools
import gzip
import re
from typing import TYPE_CHECKING

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.markup.restructured import plain_text
from hllm_jax.data.packages import Package
from hllm_jax.data.records import Record, split_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="linux-doc-6.1",
    version="6.1.176-1",
    file="linux-doc-6.1_6.1.176-1_all.deb",
    sha256="0d843674607703b9ef8c1db5e715c38ed52ff23574feabfe0d961d552126859f",
    client="apt",
)
HOLDOUT = 0.03
SHORTEST = 200  # characters; below are tables of contents and pages made of included code
FOLDER = "./usr/share/doc/linux-doc-6.1/"
TRANSLATION = re.compile(r"Documentation/translations/(\w+)/")
CHINESE = ("zh_CN", "zh_TW")


def documents(archive: Path, *, chinese: bool) -> Iterator[Example]:
    """One record a document; a translation is held out where its original is. Exact repeats are dropped."""
    seen = set[str]()
    folder = f"{FOLDER}Documentation/{'translations/' if chinese else ''}*"
    for name, content in members(archive, f"{folder}.rst.gz", f"{folder}.txt.gz"):
        path = name.removeprefix(FOLDER).removesuffix(".gz")
        translated = TRANSLATION.match(path)
        language = translated[1] if translated else "translations" if "/translations/" in path else "en"
        if language not in (CHINESE if chinese else ("en",)):
            continue
        text = gzip.decompress(content).decode("utf-8")
        text = plain_text(text) if path.endswith(".rst") else re.sub(r"[ \t]+$", "", text, flags=re.M).strip()
        if len(text) >= SHORTEST and text not in seen:
            seen.add(text)
            yield split_by(key(path), HOLDOUT), {"text": f"{path}\n\n{text}"}


def key(path: str) -> bytes:
    """What decides where a document goes: the path of its English original, without its ending."""
    return Record(text=TRANSLATION.sub("Documentation/", path).rpartition(".")[0]).content_hash()


def corpus(name: str, language: str, summary: str, train: int, validation: int, caveat: str) -> Corpus:
    """The entry of one language."""
    return Corpus(
        name=name,
        version="1.0.0",
        kind="text",
        language=language,
        summary=summary,
        licence="GPL-2.0; some documents GFDL-1.1+ or CC-BY-4.0",
        package=PACKAGE,
        train=train,
        validation=validation,
        examples=functools.partial(documents, chinese=language == "Chinese"),
        caveat=caveat,
    )


CORPORA = {
    "linux-doc": corpus(
        "linux-doc",
        "English",
        "Documentation of the Linux kernel 6.1.",
        4246,
        136,
        "Comments that the documents take from the code are missing.",
    ),
    "linux-doc-zh": corpus(
        "linux-doc-zh",
        "Chinese",
        "Chinese translations of linux-doc, found by their paths; held out where the original is.",
        265,
        9,
        "Simplified and, for the same documents, traditional characters.",
    ),
}
