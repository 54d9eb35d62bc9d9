"""MiniLM's real weights: hidden states and vectors of sentences as `transformers` has them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import hllm_jax
from hllm_jax.generation import TextEncoder
from hllm_jax.interop import resolve

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
RECORDER = ROOT / "scripts" / "fixtures" / "record_minilm.py"
FIXTURE = ROOT / "tests" / "fixtures" / "minilm.npz"


def compare(file: Path) -> None:
    model = hllm_jax.load("all-minilm-l6-v2")
    assert isinstance(model, TextEncoder)
    assert model.tokenizer is not None
    with np.load(file) as recorded:
        sentences = [str(sentence) for sentence in recorded["sentences"]]
        keep, tokens, hidden = recorded["keep"], recorded["tokens"], recorded["hidden"]
        for sentence, row, real in zip(sentences, tokens, keep, strict=False):
            assert model.tokenizer.encode_for_model(sentence)[0] == row[real != 0].tolist()
        found = np.asarray(model.hidden(tokens, keep))
        assert np.abs(found - hidden)[keep != 0].max() <= 1e-4
        assert len(sentences) == 10
        assert np.abs(model.embed(sentences) - recorded["vectors"]).max() <= 1e-5


@pytest.mark.slow
def test_vectors_of_real_sentences_are_the_recorded_ones() -> None:
    compare(FIXTURE)


@pytest.mark.slow
@pytest.mark.peers
def test_vectors_of_real_sentences_are_those_of_transformers_now(tmp_path: Path) -> None:
    folder = resolve("all-minilm-l6-v2").fetch()
    subprocess.run([PEERS, RECORDER, folder, tmp_path / "now.npz"], check=True, capture_output=True)
    compare(tmp_path / "now.npz")
