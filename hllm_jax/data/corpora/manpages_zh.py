"""Manual pages in Chinese (Debian package `manpages-zh`), simplified and traditional, as plain text."""

from __future__ import annotations

import functools
import gzip
import re
from typing import TYPE_CHECKING

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.markup.roff import plain_text
from hllm_jax.data.packages import Package
from hllm_jax.data.records import Record, split_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="manpages-zh",
    version="1.6.4.0-1",
    file="manpages-zh_1.6.4.0-1_all.deb",
    sha256="81bae29495f6445db290e3f329f1203eb19b651c2a7ea165b74ebdc853a32ac1",
    client="apt",
)
HOLDOUT = 0.03
# The translation project says on every page where it lives.
COLOPHON = re.compile(r"\s*\n跋\n.*\Z", re.DOTALL)


def pages(archive: Path, locale: str) -> Iterator[Example]:
    """One record a page; the same pages are held out in both scripts."""
    for name, content in members(archive, f"./usr/share/man/{locale}/man*/*.gz"):
        text = COLOPHON.sub("", plain_text(gzip.decompress(content).decode("utf-8")))
        if text:
            key = Record(text=name.partition(f"/{locale}/")[2]).content_hash()
            yield split_by(key, HOLDOUT), {"text": text}


def corpus(name: str, locale: str, script: str, train: int, validation: int, caveat: str) -> Corpus:
    """The entry of one script."""
    return Corpus(
        name=name,
        version="1.0.0",
        kind="text",
        language="Chinese",
        summary=f"Manual pages of commands, C functions and Perl in {script} characters.",
        licence="GFDL-1.2+; some pages GPL-2.0+ or GPL-2.0",
        package=PACKAGE,
        train=train,
        validation=validation,
        examples=functools.partial(pages, locale=locale),
        caveat=caveat,
    )


CORPORA = {
    "manpages-zh": corpus(
        "manpages-zh", "zh_CN", "simplified", 684, 19, "Parts of many pages are left in English."
    ),
    "manpages-zh-tw": corpus(
        "manpages-zh-tw", "zh_TW", "traditional", 684, 19, "Page by page the same as manpages-zh."
    ),
}
