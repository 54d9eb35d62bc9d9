"""Preparation: stored is what the tokenizer says; done twice it is found; broken off it leaves nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from hllm_jax.data import DataConfig, DataError, SourceConfig, prepare, store
from hllm_jax.data.store import Span
from hllm_jax.testing.corpora import (
    CONVERSATIONS,
    conversations,
    documents,
    write_conversations,
    write_documents,
    write_jsonl,
)
from hllm_jax.testing.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


def section(*paths, **settings):
    sources = tuple(SourceConfig(path=str(path)) for path in paths)
    return DataConfig(**{"sources": sources, "holdout": 0.0} | settings)


def everything(data):
    """(tokens, weights) of every document of the first store."""
    tokens = data.stores[0]
    read = tokens.read([Span(i, 0, int(n)) for i, n in enumerate(tokens.lengths)])
    return [(ids.tolist(), None if marks is None else marks.tolist()) for ids, marks in read]


@pytest.mark.parametrize("piece", [3, 16, 2048])
def test_documents_are_stored_as_encoded(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(store, "PIECE", piece)
    data = prepare(section(write_documents(tmp_path / "a.jsonl", 30)), TOKENIZER)
    expected = [TOKENIZER.encode_document(text) for text in documents(30)]
    assert everything(data) == [(ids, None) for ids in expected]
    tokens = data.stores[0]
    assert tokens.lengths.tolist() == [len(ids) for ids in expected]
    spans = [
        Span(d, a, b) for d, a, b in [(3, 0, 1), (3, 5, 9), (7, 2, len(expected[7])), (3, 1, 8), (0, 1, 2)]
    ]
    assert [ids.tolist() for ids, _ in tokens.read(spans)] == [
        expected[s.document][s.start : s.stop] for s in spans
    ]
    counts = data.counts
    assert counts["records"] == 30
    assert counts["tokens"] == sum(map(len, expected))
    assert counts["trained_tokens"] == counts["tokens"] - 30
    assert counts["bytes"] == sum(len(text.encode()) for text in documents(30))


@pytest.mark.parametrize("piece", [5, 2048])
def test_conversations_are_stored_with_their_weights(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(store, "PIECE", piece)
    path = write_jsonl(tmp_path / "a.jsonl", [*CONVERSATIONS, *conversations(20)])
    data = prepare(section(path), TOKENIZER)
    expected = [TOKENIZER.render(messages) for messages in [*CONVERSATIONS, *conversations(20)]]
    assert everything(data) == expected
    tokens = data.stores[0]
    assert tokens.trained.tolist() == [sum(weights[1:]) for _, weights in expected]
    assert tokens.first_trained.tolist() == [weights.index(1) for _, weights in expected]


def test_large_vocabularies_keep_their_ids(tmp_path):
    class Wide(ByteTokenizer):
        def encode(self, text):
            return [i + 70_000 for i in super().encode(text)]

    data = prepare(section(write_documents(tmp_path / "a.jsonl", 3)), Wide(80_000))
    assert everything(data)[0][0][1] == 70_005 + ord("0")
    assert data.max_id > 70_000


def test_done_twice_nothing_is_written_again(tmp_path, own_cache):
    config = section(write_documents(tmp_path / "a.jsonl", 20), write_conversations(tmp_path / "b.jsonl", 20))
    first = prepare(config, TOKENIZER)
    files = {path: path.stat().st_mtime_ns for path in (own_cache / "tokens").rglob("*") if path.is_file()}
    second = prepare(config, TOKENIZER)
    assert second.fingerprint == first.fingerprint
    assert {p: p.stat().st_mtime_ns for p in (own_cache / "tokens").rglob("*") if p.is_file()} == files
    # Made again from nothing, the content is the same too.
    again = prepare(section(*(s.path for s in config.sources), cache=str(tmp_path / "other")), TOKENIZER)
    assert [s.description for s in again.stores] == [s.description for s in first.stores]


def test_only_what_changed_is_prepared_again(tmp_path, own_cache):
    one, two = write_documents(tmp_path / "a.jsonl", 20), write_documents(tmp_path / "b.jsonl", 30)
    before = prepare(section(one, two), TOKENIZER)
    write_documents(two, 31)
    after = prepare(section(one, two), TOKENIZER)
    assert after.stores[0].folder == before.stores[0].folder
    assert after.stores[1].folder != before.stores[1].folder
    assert prepare(section(one), ByteTokenizer(300)).stores[0].folder != before.stores[0].folder


def test_a_failure_half_way_leaves_nothing(tmp_path, own_cache):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 3000}] * 2500 + [{"oops": 1}])
    with pytest.raises(DataError, match=r"a\.jsonl:2501"):
        prepare(section(path), TOKENIZER)
    assert list((own_cache / "tokens").iterdir()) == []


def prepare_and_die(config):
    def progress(label, done):
        os.kill(os.getpid(), signal.SIGKILL)

    prepare(config, ByteTokenizer(), progress=progress)


def test_killed_half_way_it_is_made_anew(tmp_path, own_cache):
    config = section(write_documents(tmp_path / "a.jsonl", 3000))
    process = multiprocessing.get_context("spawn").Process(target=prepare_and_die, args=(config,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = (own_cache / "tokens").iterdir()
    data = prepare(config, TOKENIZER)
    assert data.counts["records"] == 3000
    assert [path.name for path in (own_cache / "tokens").iterdir()] == [data.stores[0].folder.name]
    assert not left.exists()


def test_damaged_folder_is_named(tmp_path):
    config = section(write_documents(tmp_path / "a.jsonl", 300))
    folder = prepare(config, TOKENIZER).stores[0].folder
    other = prepare(section(write_documents(tmp_path / "b.jsonl", 200)), TOKENIZER).stores[0].folder
    (other / store.FILES["records"]).replace(folder / store.FILES["records"])
    with pytest.raises(OSError, match=r"holds 200 records where its index says 300; delete the folder"):
        everything(prepare(config, TOKENIZER))
    (folder / store.FILES["description"]).unlink()
    assert len(everything(prepare(config, TOKENIZER))) == 300


def test_no_answer_to_learn_from_is_an_error(tmp_path):
    questions = [[{"role": "user", "content": "Q"}]] * 3
    with pytest.raises(DataError, match="0 trained tokens in 3 records"):
        prepare(section(write_jsonl(tmp_path / "a.jsonl", questions)), TOKENIZER)
    mixed = prepare(section(write_jsonl(tmp_path / "b.jsonl", questions + conversations(2))), TOKENIZER)
    assert (mixed.counts["records"], mixed.counts["untrained"]) == (2, 3)


def test_vocabulary_smaller_than_the_largest_id(tmp_path):
    with pytest.raises(DataError, match="does not fit a vocabulary of 100"):
        prepare(section(write_documents(tmp_path / "a.jsonl", 3)), ByteTokenizer(100))


def test_texts_and_conversations_in_one_file_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, conversations(1)[0]])
    with pytest.raises(DataError, match=r"a\.jsonl:2: texts and conversations are mixed"):
        prepare(section(path), TOKENIZER)


def test_licences_and_sources_are_recorded(tmp_path):
    data = prepare(section(write_documents(tmp_path / "a.jsonl", 3)), TOKENIZER)
    assert list(data.licences.values()) == ["the user's own files"]
    assert data.sources[0]["label"].endswith("a.jsonl")
