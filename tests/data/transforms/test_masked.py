"""Rows of masked language models: nothing lost, special tokens spared, static and dynamic masks, pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.data import DataError, loader
from hllm_jax.data.order import Draws
from hllm_jax.data.transforms.masked import truncate_pair
from hllm_jax.testing.tokenizer import SpecialByteTokenizer
from tests.data.transforms.doubles import CLS, MASK, PAD, SEP, TOKENIZER, batches_of, equal, rows_of, texts

ROWS = ("packed", "full_sentences", "nsp", "sop")
FIELDS = {"tokens", "targets", "weights", "segment_ids", "positions"}


def texts_of(row: dict[str, np.ndarray]) -> list[list[int]]:
    """The texts between the special tokens of a row, as they were."""
    found: list[list[int]] = []
    for token in row["targets"][row["segment_ids"] > 0].tolist():
        if token in (CLS, SEP):
            found.append([])
        else:
            found[-1].append(token)
    return [text for text in found if text]


@pytest.mark.parametrize("rows", ROWS)
def test_fields_shapes_and_padding(tmp_path: Path, rows: str) -> None:
    batches = batches_of(tmp_path, "masked_lm", rows=rows)
    pairs = {"token_types", "pair_labels", "pair_weights"} if rows in ("nsp", "sop") else set()
    for n in range(len(batches)):
        batch = batches[n]
        assert set(batch) == FIELDS | pairs
        assert all(batch[name].shape == (8, 64) for name in FIELDS)
        assert {str(batch[name].dtype) for name in FIELDS - {"weights"}} == {"int32"}
        assert batch["weights"].dtype == np.float32
        unused = batch["segment_ids"] == 0
        assert (batch["tokens"][unused] == PAD).all()
        assert (batch["targets"][unused] == PAD).all()
        assert not batch["weights"][unused].any()
        if pairs:
            assert batch["pair_labels"].shape == batch["pair_weights"].shape == (8,)
            assert (batch["pair_weights"] == (batch["segment_ids"].max(axis=1) > 0)).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("ngram", [1, 3])
def test_only_text_is_hidden_and_the_rest_is_as_it_was(tmp_path: Path, rows: str, ngram: int) -> None:
    for row in rows_of(batches_of(tmp_path, "masked_lm", rows=rows, ngram=ngram)):
        hidden = row["weights"] > 0
        assert (row["tokens"][~hidden] == row["targets"][~hidden]).all()
        assert not np.isin(row["targets"][hidden], [CLS, SEP, PAD]).any()
        assert not np.isin(row["tokens"][hidden], [CLS, SEP, PAD]).any()


def test_packed_segments_are_framed_pieces_and_nothing_is_lost(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "masked_lm")
    pieces: Counter[bytes] = Counter()
    for row in rows_of(batches):
        for number in range(1, int(row["segment_ids"].max()) + 1):
            (where,) = np.nonzero(row["segment_ids"] == number)
            assert (row["positions"][where] == np.arange(len(where))).all()
            ids = row["targets"][where]
            assert (ids[0], ids[-1]) == (CLS, SEP)
            assert row["weights"][where].sum() == max(1, round(0.15 * (len(ids) - 2)))
            pieces[bytes(token - 5 for token in ids[1:-1])] += 1
    # Pieces of 62 tokens and a rest, from every text.
    wanted: Counter[bytes] = Counter()
    for text in texts():
        data = text.encode()
        wanted.update(data[start : start + 62] for start in range(0, len(data), 62))
    assert pieces == wanted
    assert batches.stats["trained_tokens"] == sum(row["weights"].sum() for row in rows_of(batches))


def test_full_sentences_fill_rows_and_documents_are_separated(tmp_path: Path) -> None:
    """`[CLS] sentences [SEP] sentences of another document [SEP]`: one segment, whole sentences."""
    found: Counter[str] = Counter()
    several = 0
    for row in rows_of(batches_of(tmp_path, "masked_lm", rows="full_sentences", length=128)):
        used = row["segment_ids"] > 0
        assert set(row["segment_ids"][used].tolist()) == {1}
        assert row["targets"][0] == CLS
        assert (row["targets"] == CLS).sum() == 1
        assert row["targets"][used][-1] == SEP
        parts = texts_of(row)
        several += len(parts) > 1
        found.update(TOKENIZER.decode(part) for part in parts)
    assert several
    endings = tuple(".？?！!。")
    assert all(text.endswith(endings) for text in found), "no sentence is cut"
    assert sum(len(text) * times for text, times in found.items()) == sum(map(len, texts()))


def test_sop_pairs_are_consecutive_or_swapped_half_and_half(tmp_path: Path) -> None:
    labels: Counter[int] = Counter()
    joined: Counter[bytes] = Counter()
    batches = batches_of(tmp_path, "masked_lm", texts(400), rows="sop", short=0.0)
    for row in rows_of(batches):
        first, second = (bytes(token - 5 for token in part) for part in texts_of(row))
        label = int(row["pair_labels"])
        labels[label] += 1
        joined[first + second if label == 0 else second + first] += 1
        ends = np.flatnonzero(row["targets"] == SEP)
        used = int((row["segment_ids"] > 0).sum())
        assert row["token_types"].tolist() == (
            [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0]) + [0] * (64 - used)
        )
    total = sum(labels.values())
    assert total == batches.rows_per_epoch > 400
    assert abs(labels[1] - total / 2) < 5 * (total / 4) ** 0.5
    everything = "\n".join(texts(400)).encode()
    assert sum(len(text) * times for text, times in joined.items()) == len(everything) - 399
    assert all(text in everything for text in joined), "put right, a pair is a stretch of a text"


def test_nsp_negatives_come_from_another_document(tmp_path: Path) -> None:
    marked = [f"{chr(0x4E00 + n) * 12}。" * 6 for n in range(80)]
    labels: Counter[int] = Counter()
    batches = batches_of(tmp_path, "masked_lm", marked, rows="nsp", length=160, short=0.0)
    for row in rows_of(batches):
        first, second = (
            {c for c in TOKENIZER.decode(part) if "\u4e00" <= c < "\u9fff"} for part in texts_of(row)
        )
        assert len(first) == len(second) == 1
        assert int(row["pair_labels"]) == (first != second)
        labels[int(row["pair_labels"])] += 1
    total = sum(labels.values())
    assert total > 80
    assert abs(labels[1] - total / 2) < 5 * (total / 4) ** 0.5


def test_nsp_needs_two_documents(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one document only; give more, or use sop"):
        batches_of(tmp_path, "masked_lm", ["Only one. Of them."], rows="nsp")


def test_a_tenth_of_the_pairs_is_short(tmp_path: Path) -> None:
    long = ["A sentence of twenty." * 1 + " Another one of them." * 60] * 30
    sizes = [
        int((row["segment_ids"] > 0).sum())
        for row in rows_of(batches_of(tmp_path, "masked_lm", long, rows="sop", length=128, short=0.1))
    ]
    full = [size for size in sizes if size > 128 - 24]
    assert 0.02 < 1 - len(full) / len(sizes) < 0.25
    assert len(sizes) > 300


def test_truncation_takes_from_the_longer_one_at_either_end() -> None:
    fronts: Counter[int] = Counter()
    for number in range(200):
        first, second = truncate_pair(10, 4, 10, Draws(number))
        assert (second.start, second.stop) == (0, 4)
        assert first.stop - first.start == 6
        fronts[first.start] += 1
    assert set(fronts) == {0, 1, 2, 3, 4}  # four tokens, each from the front with chance 1/2
    assert fronts[2] > fronts[0]
    first, second = truncate_pair(9, 9, 10, Draws(0))
    assert (first.stop - first.start, second.stop - second.start) == (5, 5)
    assert truncate_pair(3, 4, 10, Draws(0)) == (slice(0, 3), slice(0, 4))


def masks_by_text(rows: list[dict[str, np.ndarray]]) -> Counter[bytes]:
    """The rows of an epoch without their order."""
    return Counter(b"".join(row[name].tobytes() for name in sorted(row)) for row in rows)


@pytest.mark.parametrize("rows", ROWS)
def test_dynamic_masks_differ_in_every_epoch_static_ones_come_again(tmp_path: Path, rows: str) -> None:
    dynamic = batches_of(tmp_path, "masked_lm", rows=rows, epochs=None)
    static = batches_of(tmp_path, "masked_lm", rows=rows, epochs=None, masks="static", duplicates=2)
    first, second, third = (masks_by_text(rows_of(dynamic, epoch)) for epoch in range(3))
    assert first != second != third != first
    kept, other, again = (rows_of(static, epoch) for epoch in range(3))
    assert masks_by_text(kept) == masks_by_text(again) != masks_by_text(other)
    assert not all(equal(a, b) for a, b in zip(kept, again, strict=True)), "in another order"


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("rows", ROWS)
def test_hosts_together_read_the_global_batch(tmp_path: Path, rows: str, hosts: int) -> None:
    batches = batches_of(tmp_path, "masked_lm", rows=rows, epochs=2, ngram=2)
    share = 8 // hosts
    parts = [list(loader(batches, local=slice(h * share, (h + 1) * share))) for h in range(hosts)]
    for n in range(len(batches)):
        joined = {name: np.concatenate([part[n][name] for part in parts]) for name in batches[n]}
        assert equal(joined, batches[n])


def test_the_seed_and_the_settings_are_in_the_fingerprint(tmp_path: Path) -> None:
    made: list[Any] = [
        batches_of(tmp_path, "masked_lm"),
        batches_of(tmp_path, "masked_lm", seed=1),
        batches_of(tmp_path, "masked_lm", share=0.2),
        batches_of(tmp_path, "causal"),
    ]
    assert len({batches.fingerprint for batches in made}) == 4
    assert batches_of(tmp_path, "masked_lm").fingerprint == made[0].fingerprint
    assert masks_by_text(rows_of(made[0])) != masks_by_text(rows_of(made[1]))


def test_whole_words_of_pieces(tmp_path: Path) -> None:
    """With the double's rule a word is a run of ASCII letters, or one Chinese character of three bytes."""
    some = 0
    for row in rows_of(batches_of(tmp_path, "masked_lm", whole_words="pieces", share=0.3)):
        hidden, ids = row["weights"] > 0, row["targets"]
        continues = TOKENIZER.continues_word[ids]
        inside = continues[1:] & (row["segment_ids"][1:] > 0) & ~np.isin(ids[:-1], [CLS, SEP])
        assert (hidden[1:][inside] == hidden[:-1][inside]).all()
        some += int(hidden.sum())
    assert some > 100


def test_whole_words_of_segmented_chinese(tmp_path: Path) -> None:
    segmented = ["我们 喜欢 机器 学习 。 Deep learning 很 有趣 ！ " * 3] * 20
    words = ["我们", "喜欢", "机器", "学习", "。", " Deep", " learning", " 很", "有趣", "！"]
    written = "".join(words)
    hidden_words: Counter[str] = Counter()
    batches = batches_of(tmp_path, "masked_lm", segmented, whole_words="spaces", length=256, share=0.3)
    for row in rows_of(batches):
        for number in range(1, int(row["segment_ids"].max()) + 1):
            where = np.flatnonzero(row["segment_ids"] == number)[1:-1]
            text = bytes(int(token) - 5 for token in row["targets"][where])
            assert text.decode().startswith(written), "the blanks between Chinese words are not kept"
            hidden = row["weights"][where] > 0
            at = 0
            for word in words:
                part = hidden[at : at + len(word.encode())]
                assert part.all() or not part.any(), word
                hidden_words[word] += bool(part.all())
                at += len(part)
    assert sum(hidden_words.values()) > 40
    assert len(hidden_words) == len(words)


def test_every_missing_special_token_is_named(tmp_path: Path) -> None:
    plain = SpecialByteTokenizer()
    plain.mask_id = plain.cls_id = None
    plain.bos_id = None
    with pytest.raises(DataError, match=r"masked_lm needs .*\[CLS\], \[MASK\].*mask_token: true"):
        batches_of(tmp_path, "masked_lm", tokenizer=plain)


def test_begin_and_end_of_document_stand_in_for_cls_and_sep(tmp_path: Path) -> None:
    roberta = SpecialByteTokenizer()
    roberta.cls_id = roberta.sep_id = None
    row = rows_of(batches_of(tmp_path, "masked_lm", tokenizer=roberta))[0]
    assert row["targets"][0] == roberta.bos_id
    assert row["targets"][row["segment_ids"] == 1][-1] == roberta.eos_id


def test_masks_are_masks(tmp_path: Path) -> None:
    hidden = np.concatenate(
        [row["tokens"][row["weights"] > 0] for row in rows_of(batches_of(tmp_path, "masked_lm", texts(300)))]
    )
    share = (hidden == MASK).mean()
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / len(hidden)) ** 0.5
