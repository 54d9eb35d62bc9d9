"""A large English dictionary of 1913 with additions (Debian package `dict-gcide`), one record an entry."""

from __future__ import annotations

import gzip
import re
import string
import unicodedata
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
    name="dict-gcide",
    version="0.48.5+nmu2",
    file="dict-gcide_0.48.5+nmu2_all.deb",
    sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    client="apt",
)
HOLDOUT = 0.01
DIGITS = {
    digit: value
    for value, digit in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")
}
"""Of the numbers in a dictd index, base 64."""
SOURCE = r"\s*\[[^\[\]]*\b(?:1913|WordNet|PJC|Century Dict)[^\[\]]*\]"
# Behind the last one the headword of the next entry may stand.
LAST_SOURCE = re.compile(rf"{SOURCE}[^\n\[\]]*\Z")
ANY_SOURCE = re.compile(SOURCE)
REFERENCE = re.compile(r"\{([^{}]*)\}")
LETTER = re.compile(r"\[(?:([`'\"^=.~,])([A-Za-z])|([A-Za-z])\^|([A-Za-z]{2,6}))\]")
ACCENTS = {
    "`": "\u0300",
    "'": "\u0301",
    '"': "\u0308",
    "^": "\u0302",
    "=": "\u0304",
    ".": "\u0307",
    "~": "\u0303",
    ",": "\u0327",
}
BREVE = "\u0306"
NAMED = {
    **{"ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "eth": "ð", "thorn": "þ", "yogh": "ȝ", "imac": "ī"},
    **{"aum": "ä", "deg": "°", "sect": "§", "root": "√", "pounds": "£", "alpha": "α", "beta": "β"},
}


def entries(archive: Path) -> Iterator[Example]:
    """The entries in the order of the book; exact repeats are dropped."""
    files = {
        name.rpartition(".")[2]: content for name, content in members(archive, "./usr/share/dictd/gcide.*")
    }
    book = gzip.decompress(files["dz"])  # dictzip is gzip with an index of its own in the header
    seen = set[bytes]()
    for start, size in places(files["index"].decode("utf-8")):
        text = plain(decoded(book[start : start + size]))
        key = Record(text=text).content_hash()
        if text and key not in seen:
            seen.add(key)
            yield split_by(key, HOLDOUT), {"text": text}


def places(index: str) -> list[tuple[int, int]]:
    """Start and length of every entry (several headwords may share one), without what is about the book."""
    found = set[tuple[int, int]]()
    for line in index.splitlines():
        headword, start, size = line.split("\t")
        if not headword.startswith("00-"):
            found.add((number(start), number(size)))
    return sorted(found)


def number(digits: str) -> int:
    """A number of a dictd index."""
    value = 0
    for digit in digits:
        value = 64 * value + DIGITS[digit]
    return value


def decoded(entry: bytes) -> str:
    """The book is ASCII but for three bytes, which are Latin."""
    try:
        return entry.decode("utf-8")
    except UnicodeDecodeError:
        return entry.decode("cp1252")


def plain(entry: str) -> str:
    """An entry without the names of its sources, cross reference marks and spelled-out accents."""
    text = ANY_SOURCE.sub("", LAST_SOURCE.sub("", entry.rstrip()))
    text = LETTER.sub(accented, REFERENCE.sub(r"\1", text))
    lines = [line.rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def accented(found: re.Match[str]) -> str:
    """`['e]` is é, `[a^]` is ă, `[ae]` is æ; what is not known stays as it is."""
    accent, under, breve, name = found.groups()
    if name is not None:
        return NAMED.get(name, found[0])
    return unicodedata.normalize("NFC", breve + BREVE if breve else under + ACCENTS[accent])


CORPORA = {
    "dict-gcide": Corpus(
        name="dict-gcide",
        version="1.0.0",
        kind="text",
        language="English",
        summary="Collaborative International Dictionary of English: Webster 1913, with later additions.",
        licence="GPL-2.0+",
        package=PACKAGE,
        train=124943,
        validation=1285,
        examples=entries,
        caveat="The English and the views of 1913; Greek words are missing or transcribed.",
    )
}
