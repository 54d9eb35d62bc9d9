"""Span corruption: the paper's example, T5's row lengths and statistics, and every text comes back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hllm_jax.data import DataError, loader
from hllm_jax.data.order import Draws
from hllm_jax.data.transforms.spans import corrupt, noise_counts, noise_mask, row_lengths
from hllm_jax.testing.tokenizer import SpecialByteTokenizer
from tests.data.transforms.doubles import PAD, TOKENIZER, batches_of, equal, rows_of, texts

SENTINELS = TOKENIZER.sentinel_ids


def test_the_papers_example() -> None:
    """Figure 2 of Raffel et al. 2020."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    mask = np.array([word in ("for", "inviting", "last") for word in words])
    names = [*words, "<X>", "<Y>", "<Z>"]
    source, target = corrupt(np.arange(len(words)), mask, [len(words) + k for k in range(3)])
    assert " ".join(names[i] for i in source) == "Thank you <X> me to your party <Y> week"
    assert " ".join(names[i] for i in target) == "<X> for inviting <Y> last <Z>"


def test_row_lengths_are_those_of_t5() -> None:
    assert row_lengths(512, 0.15, 3.0) == (568, 114)
    assert row_lengths(1024, 0.15, 3.0) == (1137, 229)


@pytest.mark.parametrize("length", [8, 16, 64, 114, 512])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0)])
def test_the_longest_text_fills_the_input_and_no_target_is_longer(
    length: int, density: float, mean: float
) -> None:
    tokens, targets = row_lengths(length, density, mean)
    noise, spans = noise_counts(np.arange(1, tokens + 2), density, mean)
    inputs = np.arange(1, tokens + 2) - noise + spans + 1
    assert inputs[:-1].max() <= length < inputs[-1]
    assert (noise + spans + 1)[:-1].max() == targets
    if (density, mean) == (0.15, 3.0) and length >= 64:
        assert inputs[-2] == length


def test_counts_by_hand() -> None:
    """100 tokens: 15 of noise in 5 spans. 10: round(1.5) = 2 in 1. 2: 1 in 1. 1: nothing to hide."""
    noise, spans = noise_counts(np.array([100, 10, 2, 1]), 0.15, 3.0)
    assert noise.tolist() == [15, 2, 1, 0]
    assert spans.tolist() == [5, 1, 1, 0]


def test_noise_masks_have_exact_counts_and_are_all_equally_likely() -> None:
    """8 tokens, 4 of noise in 2 spans: 3 ways to divide the noise, 3 to divide the rest, 9 masks in all."""
    seen: Counter[tuple[bool, ...]] = Counter()
    for number in range(4500):
        mask = noise_mask(8, 0.5, 2.0, Draws(number))
        assert mask.sum() == 4
        assert not mask[0]
        assert mask[-1]
        assert (np.diff(mask.astype(int)) == 1).sum() == 2
        seen[tuple(mask.tolist())] += 1
    assert len(seen) == 9
    assert all(abs(count - 500) < 5 * (4500 / 9 * 8 / 9) ** 0.5 for count in seen.values())


def restored(row: dict[str, np.ndarray]) -> list[bytes]:
    """The texts of a row, put together from what the encoder reads and the decoder predicts."""
    found = []
    for number in range(1, int(row["segment_ids"].max()) + 1):
        source = row["tokens"][row["segment_ids"] == number].tolist()
        target = row["targets"][row["decoder_segment_ids"] == number].tolist()
        assert source.pop() == target.pop() == TOKENIZER.eos_id
        spans: dict[int, list[int]] = {}
        for token in target:
            if token in SENTINELS:
                spans[token] = current = []
            else:
                current.append(token)
        assert list(spans) == list(SENTINELS[: len(spans)])
        whole = [part for token in source for part in (spans[token] if token in SENTINELS else [token])]
        found.append(bytes(token - 5 for token in whole))
    return found


@pytest.mark.parametrize("length", [16, 64, 200])
def test_every_text_comes_back(tmp_path: Path, length: int) -> None:
    longest, _ = row_lengths(length, 0.15, 3.0)
    pieces: Counter[bytes] = Counter()
    for row in rows_of(batches_of(tmp_path, "span_corruption", length=length)):
        pieces.update(restored(row))
    wanted: Counter[bytes] = Counter()
    for text in texts():
        data = text.encode()
        wanted.update(data[start : start + longest] for start in range(0, len(data), longest))
    assert pieces == wanted


def test_rows(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "span_corruption")
    longest, targets = row_lengths(64, 0.15, 3.0)
    assert batches.lengths == (64, targets)
    full = 0
    for row in rows_of(batches):
        for side, names in (("", ("tokens", "positions")), ("decoder_", ("tokens", "positions"))):
            segments = row[f"{side}segment_ids"]
            assert (row[f"{side}{names[0]}"][segments == 0] == PAD).all()
            for number in range(1, int(segments.max()) + 1):
                (where,) = np.nonzero(segments == number)
                assert (np.diff(where) == 1).all()
                assert (row[f"{side}{names[1]}"][where] == np.arange(len(where))).all()
        out = row["decoder_segment_ids"]
        for number in range(1, int(out.max()) + 1):
            (where,) = np.nonzero(out == number)
            assert row["decoder_tokens"][where[0]] == PAD, "T5 starts with its pad token"
            assert (row["decoder_tokens"][where[1:]] == row["targets"][where[:-1]]).all()
            assert len(set(row["weights"][where].tolist())) == 1
        assert row["weights"][out == 0].sum() == 0
        full += int((row["segment_ids"] == 1).all())
    assert full >= sum(len(text.encode()) // longest for text in texts())


def test_a_lone_token_is_not_learned(tmp_path: Path) -> None:
    longest, _ = row_lengths(16, 0.15, 3.0)
    (row, other) = rows_of(batches_of(tmp_path, "span_corruption", ["a" * (longest + 1)], length=16))
    weights = sorted(float(each["weights"].sum()) for each in (row, other))
    assert weights == [0.0, float(noise_counts(np.array(longest), 0.15, 3.0)[0] + 1 + 1)]


def test_epochs_differ_hosts_agree(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "span_corruption", epochs=2)
    first, second = (Counter(row["tokens"].tobytes() for row in rows_of(batches, e)) for e in (0, 1))
    assert first != second
    for hosts in (2, 4):
        share = 8 // hosts
        parts = [list(loader(batches, local=slice(h * share, (h + 1) * share))) for h in range(hosts)]
        for n in range(len(batches)):
            joined = {name: np.concatenate([part[n][name] for part in parts]) for name in batches[n]}
            assert equal(joined, batches[n])


def test_too_few_sentinels_are_refused_with_the_number(tmp_path: Path) -> None:
    few = SpecialByteTokenizer(sentinels=2)
    with pytest.raises(DataError, match=r"needs 3 sentinels .* the tokenizer has 2.*sentinels: 100"):
        batches_of(tmp_path, "span_corruption", tokenizer=few, length=64)
