"""Every family learns: 200 steps of its own objective on real text beat a unigram model on held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.families.contract import Case, first_cases
from tests.models.families.learning import learn


@pytest.mark.slow
@pytest.mark.parametrize("case", first_cases(), ids=repr)
def test_200_steps_beat_a_unigram_model(case: Case, tmp_path: Path) -> None:
    loss, unigram = learn(case.spec, tmp_path)
    assert loss < unigram - 0.05, (loss, unigram)
