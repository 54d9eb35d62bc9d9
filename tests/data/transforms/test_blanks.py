"""Blank infilling: the figure of the paper, Poisson lengths, the share, positions; every text comes back."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hllm_jax.data import DataError, loader
from hllm_jax.data.order import Draws
from hllm_jax.data.transforms.blanks import (
    BlankIds,
    BlankShares,
    draw_sentences,
    draw_spans,
    fill_in,
    poisson_lengths,
)
from hllm_jax.testing.tokenizer import SpecialByteTokenizer
from tests.data.transforms.doubles import CLS, IDS, MASK, PAD, batches_of, equal, rows_of, texts

START, END = IDS["<|startofpiece|>"], IDS["<|endofpiece|>"]
SENTENCE, DOCUMENT = IDS["[sMASK]"], IDS["[gMASK]"]


def test_the_papers_figure() -> None:
    """Figure 2 of Du et al. 2022: x1 … x6, the spans x3 and x5 x6, the second one first; positions from 0."""
    mask, start, end, pad = 90, 91, 92, 93
    ids = BlankIds(pad, None, mask, mask, mask, start, end)
    spans, order = np.array([[2, 3], [4, 6]]), np.array([1, 0])
    filled = fill_in(np.array([1, 2, 3, 4, 5, 6]), spans, order, mask, ids)
    assert filled["tokens"].tolist() == [1, 2, mask, 4, mask, start, 5, 6, start, 3]
    assert filled["targets"].tolist() == [pad] * 5 + [5, 6, end, 3, end]
    assert (filled["positions"][:, 0] + 1).tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert filled["positions"][:, 1].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert filled["prefix"].tolist() == [1] * 5 + [0] * 5
    assert filled["weights"].tolist() == [0.0] * 5 + [1.0] * 5


def test_lengths_are_poisson_without_zero() -> None:
    lengths = poisson_lengths(40_000, 3.0, Draws(0))
    for k in range(1, 9):
        chance = math.exp(-3) * 3**k / math.factorial(k) / (1 - math.exp(-3))
        count = int((lengths == k).sum())
        assert abs(count - 40_000 * chance) < 5 * (40_000 * chance) ** 0.5
    assert lengths.min() == 1
    assert abs(lengths.mean() - 3 / (1 - math.exp(-3))) < 0.05


@pytest.mark.parametrize("tokens", [2, 3, 7, 20, 100, 500])
def test_spans_cover_the_share_and_never_touch(tokens: int) -> None:
    shares = BlankShares()
    wanted = max(1, round(0.15 * tokens))
    covered, places = [], np.zeros(tokens)
    for number in range(300):
        spans = draw_spans(tokens, shares, Draws(number))
        flat = spans.reshape(-1)
        assert (np.diff(flat) > 0).all(), "each has a token, and one stays between two"
        assert flat[0] >= 0
        assert flat[-1] <= tokens
        assert len(spans) <= shares.most_spans(np.array(tokens))
        covered.append(int((spans[:, 1] - spans[:, 0]).sum()))
        assert covered[-1] < tokens
        for start, stop in spans.tolist():
            places[start:stop] += 1
    if tokens >= 100:
        assert min(covered) >= wanted
        assert wanted <= np.mean(covered) < wanted + 3
        # Every place is covered about equally often, the ends too (they lie at the rim of fewer spans).
        assert places.max() < 2 * np.mean(places)
        assert places[tokens // 4 : -tokens // 4].min() > 0.4 * np.mean(places)


def test_sentences_are_blanked_whole_and_one_stays() -> None:
    edges = np.array([0, 5, 9, 30, 31, 60])
    seen: Counter[int] = Counter()
    for number in range(300):
        spans = draw_sentences(edges, 60, BlankShares(), Draws(number))
        for start, stop in spans.tolist():
            assert (start, stop) in set(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
            seen[start] += 1
        assert int((spans[:, 1] - spans[:, 0]).sum()) >= 9
        assert len(spans) < 5
    assert set(seen) == {0, 5, 9, 30, 31}


def restored(row: dict[str, np.ndarray]) -> list[tuple[int, bytes]]:
    """(mask of the segment, text) of every segment, put together from part A and the targets of part B."""
    found = []
    for number in range(1, int(row["segment_ids"].max()) + 1):
        where = row["segment_ids"] == number
        tokens, targets = row["tokens"][where], row["targets"][where]
        prefix, positions = row["prefix"][where] > 0, row["positions"][where]
        assert (row["weights"][where] == ~prefix).all()
        first = tokens[prefix]
        assert first[0] == CLS
        assert (positions[prefix] == np.stack([np.arange(len(first)), 0 * first], axis=1)).all()
        spans: dict[int, list[int]] = {}
        for token, target, (place, offset) in zip(
            tokens[~prefix].tolist(), targets[~prefix].tolist(), positions[~prefix].tolist(), strict=True
        ):
            if offset == 1:
                assert token == START
                spans[place] = current = []
            else:
                assert token == current[-1], "the token before is what comes in"
            if target == END:
                assert offset == len(current) + 1
            else:
                current.append(target)
        masks = set(first[list(spans)].tolist())
        assert len(masks) <= 1
        whole = [part for place, token in enumerate(first.tolist()) for part in spans.get(place, [token])][1:]
        found.append((masks.pop() if masks else 0, bytes(token - 5 for token in whole)))
    return found


@pytest.mark.parametrize("shares", [{}, {"sentence": 1.0}, {"document": 1.0}])
def test_every_text_comes_back(tmp_path: Path, shares: dict[str, float]) -> None:
    batches = batches_of(tmp_path, "blank_infilling", length=96, **shares)
    found = [part for row in rows_of(batches) for part in restored(row)]
    longest = max(len(text) for _, text in found)
    wanted: Counter[bytes] = Counter()
    for text in texts():
        data = text.encode()
        wanted.update(data[start : start + longest] for start in range(0, len(data), longest))
    assert Counter(text for _, text in found) == wanted
    masks = Counter(mask for mask, _ in found)
    if not shares:
        assert set(masks) <= {MASK, 0}
    elif "document" in shares:
        assert set(masks) <= {DOCUMENT, 0}
    else:
        assert set(masks) <= {SENTENCE, MASK, 0}  # a text of one sentence loses spans
        assert masks[SENTENCE] > masks[MASK]


def test_shares_of_the_kinds(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "blank_infilling", texts(600), length=96, sentence=0.25, document=0.5)
    masks = Counter(mask for row in rows_of(batches) for mask, _ in restored(row))
    total = sum(masks.values())
    assert abs(masks[DOCUMENT] - total / 2) < 5 * (total / 4) ** 0.5
    assert abs(masks[SENTENCE] + masks[MASK] - total / 2) < 5 * (total / 4) ** 0.5
    assert masks[SENTENCE] > 0.1 * total


def test_documents_lose_their_end_half_of_it_to_all(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "blank_infilling", texts(300), length=96, document=1.0)
    shares = []
    for row in rows_of(batches):
        for number in range(1, int(row["segment_ids"].max()) + 1):
            where = row["segment_ids"] == number
            kept = int((row["prefix"][where] > 0).sum()) - 2
            lost = int(row["weights"][where].sum()) - 1
            if lost + kept > 40:
                assert row["tokens"][where][kept + 1] == DOCUMENT
                shares.append(lost / (lost + kept))
    assert 0.5 <= min(shares) < 0.55
    assert 0.95 < max(shares) <= 1
    assert abs(np.mean(shares) - 0.75) < 0.05


def test_rows(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "blank_infilling")
    for n in range(len(batches)):
        batch = batches[n]
        assert batch["positions"].shape == (8, 64, 2)
        unused = batch["segment_ids"] == 0
        assert (batch["tokens"][unused] == PAD).all()
        assert not batch["prefix"][unused].any()
        assert not batch["weights"][unused].any()


def test_single_positions_are_places_in_the_segment(tmp_path: Path) -> None:
    pairs = batches_of(tmp_path, "blank_infilling")
    single = batches_of(tmp_path, "blank_infilling", positions="single")
    for n in range(len(single)):
        a, b = pairs[n], single[n]
        assert all((a[name] == b[name]).all() for name in a if name != "positions")
        assert b["positions"].shape == (8, 64)
        for row in range(8):
            for number in range(1, int(b["segment_ids"][row].max()) + 1):
                places = b["positions"][row][b["segment_ids"][row] == number]
                assert (places == np.arange(len(places))).all()


def test_spans_are_shuffled(tmp_path: Path) -> None:
    rising = falling = 0
    for row in rows_of(batches_of(tmp_path, "blank_infilling", texts(200), length=200)):
        starts = row["positions"][:, 0][(row["positions"][:, 1] == 1) & (row["segment_ids"] == 1)]
        rising += int((np.diff(starts) > 0).sum())
        falling += int((np.diff(starts) < 0).sum())
    total = rising + falling
    assert total > 100
    assert abs(rising - total / 2) < 5 * (total / 4) ** 0.5


def test_epochs_differ_hosts_agree(tmp_path: Path) -> None:
    batches = batches_of(tmp_path, "blank_infilling", epochs=2)
    first, second = (Counter(row["tokens"].tobytes() for row in rows_of(batches, e)) for e in (0, 1))
    assert first != second
    for hosts in (2, 4):
        share = 8 // hosts
        parts = [list(loader(batches, local=slice(h * share, (h + 1) * share))) for h in range(hosts)]
        for n in range(len(batches)):
            joined = {name: np.concatenate([part[n][name] for part in parts]) for name in batches[n]}
            assert equal(joined, batches[n])


def test_missing_tokens_are_named_together(tmp_path: Path) -> None:
    class Bare(SpecialByteTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.special_ids = {}

    wanted = r"blank_infilling needs .*: <\|startofpiece\|>, <\|endofpiece\|>, \[gMASK\]\."
    with pytest.raises(DataError, match=wanted):
        batches_of(tmp_path, "blank_infilling", tokenizer=Bare(), document=0.5)
