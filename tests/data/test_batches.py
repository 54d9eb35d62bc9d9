"""Batches: a pure function of (config, seed, n), the same for any number of hosts, with every token once."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest

from hllm_jax.data import Batches, DataConfig, DataError, SourceConfig, loader, prepare
from hllm_jax.testing.corpora import (
    conversations,
    documents,
    write_conversations,
    write_documents,
    write_jsonl,
)
from hllm_jax.testing.tokenizer import PAD, ByteTokenizer

TOKENIZER = ByteTokenizer()
FIELDS = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segment_ids": np.int32,
    "positions": np.int32,
}


def batches_of(path, packing="concat", batch_size=4, length=32, seed=0, epochs=1, **settings):
    config = DataConfig(sources=(SourceConfig(path=str(path)),), packing=packing, holdout=0.0, **settings)
    return Batches(prepare(config, TOKENIZER), batch_size, length, seed, epochs)


def segments_of(batch):
    """Every segment of a batch as (tokens with the last target, weights)."""
    found = []
    for row in range(batch["tokens"].shape[0]):
        ids = batch["segment_ids"][row]
        for number in range(1, int(ids.max()) + 1):
            (where,) = np.nonzero(ids == number)
            assert (np.diff(where) == 1).all()
            assert (batch["positions"][row, where] == np.arange(len(where))).all()
            assert (batch["tokens"][row, where[1:]] == batch["targets"][row, where[:-1]]).all()
            found.append(
                (
                    [*batch["tokens"][row, where].tolist(), int(batch["targets"][row, where[-1]])],
                    batch["weights"][row, where],
                )
            )
    return found


def equal(a, b):
    return all((a[name] == b[name]).all() for name in FIELDS)


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_shapes_types_and_padding(tmp_path, packing):
    batches = batches_of(write_documents(tmp_path / "a.jsonl", 9), packing, overlong="split")
    for n in range(len(batches)):
        batch = batches[n]
        for name, dtype in FIELDS.items():
            assert batch[name].shape == (4, 32)
            assert batch[name].dtype == dtype
        unused = batch["segment_ids"] == 0
        assert (batch["tokens"][unused] == PAD).all()
        assert (batch["targets"][unused] == PAD).all()
        assert not batch["weights"][unused].any()
        assert not batch["positions"][unused].any()


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_document_token_is_predicted_once_an_epoch(tmp_path, shuffle):
    path = write_documents(tmp_path / "a.jsonl", 40)
    batches = batches_of(path, epochs=3, shuffle=shuffle)
    expected = Counter()
    for text in documents(40):
        ids = TOKENIZER.encode_document(text)
        expected.update(itertools.pairwise(ids))
    total = Counter()
    for n in range(len(batches)):
        batch = batches[n]
        used = batch["segment_ids"] > 0
        assert (batch["weights"][used] == 1).all()
        total.update(zip(batch["tokens"][used].tolist(), batch["targets"][used].tolist(), strict=True))
    assert total == Counter({pair: 3 * count for pair, count in expected.items()})


def test_every_document_ends_in_a_trained_eos(tmp_path):
    batches = batches_of(write_documents(tmp_path / "a.jsonl", 40), length=4096, batch_size=1)
    ends = sum(
        int(tokens[-1] == TOKENIZER.eos_id)
        for n in range(len(batches))
        for tokens, _ in segments_of(batches[n])
    )
    assert ends >= 40
    assert all(
        w[-1] == 1
        for n in range(len(batches))
        for t, w in segments_of(batches[n])
        if t[-1] == TOKENIZER.eos_id
    )


def test_packed_conversations_are_the_rendered_ones(tmp_path):
    batches = batches_of(write_conversations(tmp_path / "a.jsonl", 60), "first_fit", length=256)
    rendered = sorted((tokens, weights[1:]) for tokens, weights in map(TOKENIZER.render, conversations(60)))
    packed = sorted((t, w.tolist()) for n in range(len(batches)) for t, w in segments_of(batches[n]))
    assert packed == rendered


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_weights_before_and_after_packing_add_up(tmp_path, packing):
    batches = batches_of(write_conversations(tmp_path / "a.jsonl", 60), packing, length=256)
    before = sum(sum(TOKENIZER.render(messages)[1]) for messages in conversations(60))
    after = sum(float(batches[n]["weights"].sum()) for n in range(len(batches)))
    assert after == before == batches.stats["trained_tokens"] == batches.data.counts["trained_tokens"]


@pytest.mark.parametrize("overlong", ["truncate", "split"])
def test_cut_answers_keep_their_trained_tokens(tmp_path, overlong):
    answer = "因为" * 50
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]
    batches = batches_of(
        write_jsonl(tmp_path / "a.jsonl", [chat]), "first_fit", overlong=overlong, batch_size=1
    )
    _, weights = TOKENIZER.render(chat)
    got = np.concatenate([w for n in range(len(batches)) for _, w in segments_of(batches[n])])
    expected = weights[1:33] if overlong == "truncate" else weights[1:]
    assert got.sum() == batches.stats["trained_tokens"] > 0
    if overlong == "truncate":
        assert got.tolist() == expected
        assert batches.stats["lost_trained_tokens"] == sum(weights) - got.sum()
    else:
        assert got.sum() == sum(expected)


def test_same_seed_same_batches_other_seed_or_epoch_other_order(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", 40)
    one, two, other = batches_of(path), batches_of(path), batches_of(path, seed=1)
    assert all(equal(one[n], two[n]) for n in range(len(one)))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert not all(equal(one[n], other[n]) for n in range(len(one)))
    endless = batches_of(path, epochs=None, batch_size=1)
    rows = endless.rows_per_epoch
    epochs = [[endless[e * rows + n]["tokens"].tobytes() for n in range(rows)] for e in (0, 1)]
    assert epochs[0] != epochs[1]


def test_random_access_is_pure(tmp_path):
    batches = batches_of(write_documents(tmp_path / "a.jsonl", 40), epochs=None)
    forward = [batches[n] for n in range(30)]
    copy = pickle.loads(pickle.dumps(batches.data))
    again = Batches(copy, 4, 32, 0)
    for n in reversed(range(30)):
        assert equal(again[n], forward[n])


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_hosts_together_read_the_global_batch(tmp_path, hosts, packing):
    batches = batches_of(
        write_documents(tmp_path / "a.jsonl", 40), packing, batch_size=8, epochs=2, overlong="split"
    )
    share = 8 // hosts
    parts = [list(loader(batches, local=slice(h * share, (h + 1) * share))) for h in range(hosts)]
    assert {len(part) for part in parts} == {len(batches)}
    for n in range(len(batches)):
        joined = {name: np.concatenate([part[n][name] for part in parts]) for name in FIELDS}
        assert equal(joined, batches[n])


def test_last_batch_is_filled_with_empty_rows(tmp_path):
    batches = batches_of(write_documents(tmp_path / "a.jsonl", 40), batch_size=7, epochs=2)
    rows = 2 * batches.rows_per_epoch
    assert batches.steps == -(-rows // 7)
    used = [int((batches[n]["segment_ids"].max(axis=1) > 0).sum()) for n in range(batches.steps)]
    assert used == [7] * (batches.steps - 1) + [rows - 7 * (batches.steps - 1)]
    with pytest.raises(IndexError):
        batches[batches.steps]
    with pytest.raises(IndexError):
        batches[-1]


def test_endless_batches_go_over_the_end_of_an_epoch(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", 40)
    batches, single = batches_of(path, batch_size=7, epochs=None), batches_of(path, batch_size=1, epochs=None)
    assert batches.steps is None
    with pytest.raises(TypeError, match="no end"):
        len(batches)
    for n in (0, 5, 40):
        rows = [single[7 * n + i]["tokens"][0] for i in range(7)]
        assert (batches[n]["tokens"] == np.stack(rows)).all()


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_editing_one_document_leaves_the_others_alone(tmp_path, packing):
    texts = documents(40)
    before = batches_of(
        write_jsonl(tmp_path / "a.jsonl", ({"text": t} for t in texts)), packing, overlong="split"
    )
    texts[10] = texts[10].swapcase()
    after = batches_of(
        write_jsonl(tmp_path / "a.jsonl", ({"text": t} for t in texts)), packing, overlong="split"
    )
    changed = total = 0
    for n in range(len(before)):
        for row in range(4):
            a, b = before.rows(n, row, row + 1), after.rows(n, row, row + 1)
            assert (a["segment_ids"] == b["segment_ids"]).all()
            assert (a["positions"] == b["positions"]).all()
            different = np.unique(a["segment_ids"][a["tokens"] != b["tokens"]])
            assert len(different) <= 1  # only the segment of the edited document
            changed += len(different)
            total += 1
    assert 0 < changed < total / 4


def test_mixture_rows_have_their_shares_and_their_own_epochs(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a" * 50}] * 20)
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b" * 50}] * 200)
    sources = tuple(
        SourceConfig(path=str(tmp_path / f"{n}.jsonl"), weight=w) for n, w in (("a", 0.75), ("b", 0.25))
    )
    data = prepare(DataConfig(sources=sources, holdout=0.0), TOKENIZER)
    batches = Batches(data, 8, 32, 0)
    mark = TOKENIZER.encode("a")[0]
    for n in (0, 1, 50, 51):
        assert int((batches[n]["tokens"] == mark).any(axis=1).sum()) == 6
    small = Batches(prepare(DataConfig(sources=sources[:1], holdout=0.0), TOKENIZER), 1, 32, 0)
    assert equal(batches.rows(0, 0, 1), small[0])


def test_sources_without_weights_are_one_pool(tmp_path):
    one, two = write_documents(tmp_path / "a.jsonl", 20), write_conversations(tmp_path / "b.jsonl", 20)
    config = DataConfig(sources=(SourceConfig(path=str(one)), SourceConfig(path=str(two))), holdout=0.0)
    batches = Batches(prepare(config, TOKENIZER), 4, 64, 0, epochs=1)
    weights = sum(float(batches[n]["weights"].sum()) for n in range(len(batches)))
    assert weights == batches.data.counts["trained_tokens"]
    assert batches.stats["fill"] > 0.9


def test_vocabulary_of_the_model_is_checked(tmp_path):
    data = batches_of(write_documents(tmp_path / "a.jsonl", 3)).data
    Batches(data, 1, 8, 0, vocab_size=TOKENIZER.vocab_size)
    with pytest.raises(DataError, match=r"model\.vocab_size: token id \d+ does not fit a vocabulary of 200"):
        Batches(data, 1, 8, 0, vocab_size=200)


def test_loader_resumes_by_number(tmp_path):
    batches = batches_of(write_documents(tmp_path / "a.jsonl", 40), epochs=None)
    whole = [batch for batch, _ in zip(loader(batches), range(12), strict=False)]
    rest = list(loader(batches, 5, 12))
    assert len(rest) == 7
    assert all(equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_loader_passes_errors_on(tmp_path):
    batches = batches_of(write_documents(tmp_path / "a.jsonl", 40), epochs=1)
    with pytest.raises(IndexError):
        list(loader(batches, 0, len(batches) + 1))


def test_books_own_files_load_as_they_are(tmp_path):
    """The line formats of the two files that happy-llm's chapter 5 prepares."""
    pretrain = write_jsonl(
        tmp_path / "seq_monkey_datawhale.jsonl", [{"text": "在查处虚开增值税专用发票案件中"}] * 3
    )
    chat = [
        {"role": "system", "content": "你是一个AI助手"},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
    ]
    sft = tmp_path / "BelleGroup_sft.jsonl"
    sft.write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for _ in range(3)))
    assert batches_of(pretrain).stats["documents"] == 3
    assert batches_of(sft, "first_fit", length=128).stats["trained_tokens"] == 3 * (
        len("你好！".encode()) + 1
    )
