"""The xz baseline is the xz program's own size."""

from __future__ import annotations

import lzma

import pytest

from hllm_jax.evals.compression import xz

TRAIN = ["To be, or not to be, that is the question.", "阿鼻地狱：佛教语。"] * 40
HELDOUT = ["To be, or not to be, that is the answer.", "阿党比周：指相互勾结。"]


def test_counts_what_xz_writes():
    text = "\n".join(HELDOUT).encode()
    score = xz(TRAIN, HELDOUT)
    assert score.heldout_bytes == len(text)
    assert score.bits_per_byte == 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def test_having_read_the_training_text_helps():
    score = xz([*TRAIN, *HELDOUT], HELDOUT)
    assert 0 <= score.conditioned_bits_per_byte < score.bits_per_byte / 4


def test_no_held_out_text_is_an_error():
    with pytest.raises(ValueError, match="held-out"):
        xz(TRAIN, [])
