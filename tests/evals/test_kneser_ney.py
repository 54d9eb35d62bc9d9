"""The n-gram baseline against a slow, literal reading of the formula."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from hllm_jax.evals.kneser_ney import bits_per_order, ngram

TRAIN = [
    "the cat sat on the mat and the rat sat on the cat",
    "a man, a plan, a canal: panama",
    "成语是汉语的精华，成语是固定的词组。",
    "the mat is flat; the cat is fat; that is that",
    "rats and cats and mats and hats",
]
HELDOUT = ["the rat is on the mat", "成语是词组。", "quite unlike anything"]


class Reference:
    """Interpolated modified Kneser-Ney with dictionaries, one n-gram at a time."""

    def __init__(self, text: bytes, order: int) -> None:
        self.order = order
        ring = text[len(text) - order :] + text  # the first bytes have the text's end in front of them
        grams = {
            n: Counter(ring[i - n + 1 : i + 1] for i in range(order, len(ring))) for n in range(1, order + 1)
        }
        fronts = {n: Counter(gram[1:] for gram in grams[n + 1]) for n in range(1, order)}
        self.levels = {n: self.level(grams[n] if n == order else fronts[n]) for n in range(1, order + 1)}

    @staticmethod
    def level(counts: Counter[bytes]) -> dict[bytes, dict[int, int]]:
        contexts: dict[bytes, dict[int, int]] = defaultdict(dict)
        for gram, count in counts.items():
            contexts[gram[:-1]][gram[-1]] = count
        return contexts

    def discount(self, n: int, count: int) -> float:
        rare = Counter(c for row in self.levels[n].values() for c in row.values())
        if not (rare[1] and rare[2] and rare[3]):
            return 0.5
        y = rare[1] / (rare[1] + 2 * rare[2])
        k = min(count, 3)
        value = k - (k + 1) * y * rare[k + 1] / rare[k]
        return min(max(value, 0.01), k - 0.01)

    def probability(self, context: bytes, byte: int, n: int) -> float:
        if n == 0:
            return 1 / 256
        tail = context[len(context) - (n - 1) :]
        row = self.levels[n].get(tail)
        lower = self.probability(context, byte, n - 1)
        if row is None:
            return lower
        total = sum(row.values())
        taken = sum(self.discount(n, c) for c in row.values())
        count = row.get(byte, 0)
        return ((count - self.discount(n, count)) / total if count else 0.0) + taken / total * lower


def join(texts: list[str]) -> bytes:
    return b"".join(text.encode() + b"\xff" for text in texts)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_formula_read_literally(order: int):
    reference = Reference(join(TRAIN), order)
    text = join(HELDOUT)
    expected = 0.0
    for i, byte in enumerate(text):
        n = min(order, i + 1)  # no context before the first byte
        # A shorter context at the start uses the lower levels only, as an unknown context does.
        expected -= np.log2(reference.probability(text[:i], byte, n))
    got = bits_per_order(TRAIN, HELDOUT, order)[-1]
    assert got * len(join(HELDOUT).replace(b"\xff", b"")) == pytest.approx(expected, rel=1e-9)


def test_the_reference_is_a_distribution():
    reference = Reference(join(TRAIN), 4)
    for context in (b"the", b"at ", "成".encode(), b"zzz"):
        assert sum(reference.probability(context, b, 4) for b in range(256)) == pytest.approx(1)


def test_the_order_is_chosen_on_training_text_alone():
    train = [f"{n} times {m} is {n * m}" for n in range(30) for m in range(30)]
    one, other = ngram(train, ["3 times 4 is 12"]), ngram(train, ["something else entirely"])
    assert one.order == other.order == int(np.argmin(one.chosen_from)) + 1
    assert one.chosen_from == other.chosen_from
    assert one.order > 2
    assert one.bits_per_byte < 1.5 < other.bits_per_byte
    assert one.heldout_bytes == 15


def test_one_document_takes_the_longest_order():
    assert ngram(["abababab"], ["abab"], max_order=3).order == 3


@pytest.mark.parametrize(("train", "heldout"), [([], ["a"]), (["a"], []), (["a", ""], [""])])
def test_nothing_to_count_or_to_score_is_an_error(train: list[str], heldout: list[str]):
    with pytest.raises(ValueError, match="at least one byte"):
        ngram(train, heldout)


def test_order_below_one_is_an_error():
    with pytest.raises(ValueError, match="max_order is 0"):
        ngram(["a"], ["a"], max_order=0)
