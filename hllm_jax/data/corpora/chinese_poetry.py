"""Classical Chinese (package `chinese-poetry`): poems of Tang and Song, ci, qu, and the classics."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.packages import Package
from hllm_jax.data.records import Record, split_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="chinese-poetry",
    version="2.0.1",
    file="chinese-poetry-2.0.1.tgz",
    sha256="25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
    client="npm",
)
HOLDOUT = {"tang-song-poems": 0.01, "songci": 0.02, "yuanqu": 0.02, "chinese-classics": 0.05}
FOLDER = "package/dist/"
# yudingquantangshi is left out: 10,021 of its poems stand word for word in quantangshi, more nearly so.
FILES = {
    "tang-song-poems": ("quantangshi/poet.*.json",),
    "songci": ("songci/ci.song.*.json",),
    "yuanqu": ("yuanqu/yuanqu.json",),
    "chinese-classics": (
        "shijing/shijing.json",
        "chuci/chuci.json",
        "lunyu/lunyu.json",
        "sishuwujing/*.json",
        "caocaoshiji/caocao.json",
        "nalanxingde/*.json",
        "youmengying/youmengying.json",
        "wudaishici/nantang/poetrys.json",
        "wudaishici/huajianji/huajianji-[0-9x]-juan.json",
    ),
}


def works(archive: Path, name: str) -> Iterator[Example]:
    """Title, author and lines of each work; the lines decide what is a repeat and what is held out."""
    seen = set[bytes]()
    for _, content in members(archive, *(FOLDER + pattern for pattern in FILES[name])):
        entries: Any = json.loads(content)
        for entry in entries if isinstance(entries, list) else [entries]:
            lines = body(entry)
            key = Record(text="\n".join(lines)).content_hash()
            if lines and key not in seen:
                seen.add(key)
                title = entry.get("title") or entry.get("rhythmic") or entry.get("chapter") or ""
                head = [part.strip() for part in (title, entry.get("author") or "") if part and part.strip()]
                yield (
                    split_by(key, HOLDOUT[name]),
                    {"text": "\n".join(head + lines)},
                )


def body(entry: dict[str, Any]) -> list[str]:
    """The lines of a work, whichever of its names the package gave them."""
    lines = entry.get("paragraphs") or entry.get("content") or entry.get("para") or []
    return [line.strip() for line in ([lines] if isinstance(lines, str) else lines) if line.strip()]


def corpus(name: str, summary: str, train: int, validation: int, caveat: str = "") -> Corpus:
    """The entry of one collection."""
    return Corpus(
        name=name,
        version="1.0.0",
        kind="text",
        language="Chinese",
        summary=summary,
        licence="MIT; texts public domain",
        package=PACKAGE,
        train=train,
        validation=validation,
        examples=functools.partial(works, name=name),
        caveat=caveat,
    )


CORPORA = {
    entry.name: entry
    for entry in (
        corpus(
            "tang-song-poems",
            "Poems (shi) of the Tang and Song dynasties.",
            306806,
            3166,
            "Classical verse in traditional characters; near-repeats remain.",
        ),
        corpus("songci", "Lyrics (ci) of the Song dynasty.", 20590, 435, "Classical verse."),
        corpus("yuanqu", "Songs and plays (qu) of the Yuan dynasty.", 10679, 212, "Classical verse."),
        corpus(
            "chinese-classics",
            "Book of Songs, Songs of Chu, Analects, Mencius and smaller collections.",
            1380,
            70,
            "Simplified and traditional characters mixed.",
        ),
    )
}
