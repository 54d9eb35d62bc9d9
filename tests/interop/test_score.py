"""Heads that give a number, in the files of `transformers`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.interop import read_model
from hllm_jax.interop.models import UnreadableModel, save_hf
from hllm_jax.models import Execution
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.objectives import at_last
from hllm_jax.testing.models import draw_params, random_tokens, tiny_config

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"


def score(config: Any, params: Any, tokens: np.ndarray, held: np.ndarray) -> np.ndarray:
    model = config.build(Execution(dtype="float32", attention="plain"))
    return np.asarray(at_last(model.apply({"params": params}, tokens, held, method="score"), held))


def test_a_score_goes_into_a_folder_and_comes_back(tmp_path: Path) -> None:
    config = tiny_config(head="score", tie_embeddings=False)
    params = draw_params(config)
    save_hf(tmp_path, config, params)
    published = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert published["architectures"] == ["LlamaForSequenceClassification"]
    assert list(published["id2label"]) == ["0"]
    again = read_model(tmp_path)
    assert again.config.head == "score"
    tokens = random_tokens(config, 2, 5)
    held = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.int32)
    wanted = score(config, params, tokens, held)
    np.testing.assert_array_equal(score(again.config, again.params, tokens, held), wanted)
    (tmp_path / "config.json").write_text(json.dumps(published | {"id2label": {"0": "a", "1": "b"}}), "utf-8")
    with pytest.raises(UnreadableModel, match=r"of 2 classes: of decoders only a score is read"):
        read_model(tmp_path)
    with pytest.raises(ConfigRefused, match="head is 'both'"):
        save_hf(tmp_path, tiny_config(head="both"), params)


@pytest.mark.peers
def test_scores_are_those_of_transformers(tmp_path: Path) -> None:
    """Rows are filled up on the right, with the end of text as the pad token."""
    command = [str(PEERS), str(ROOT / "tests/interop/ask_score.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    wanted = json.loads((tmp_path / "scores.json").read_text())
    rows = [[5, 7, 3, 9, 11, 4], [8, 6], [12, 13, 14, 15]]
    tokens = np.array([row + [2] * (6 - len(row)) for row in rows], np.int32)
    held = np.array([[1] * len(row) + [0] * (6 - len(row)) for row in rows], np.int32)
    assert set(wanted) == {"llama", "gpt2"}
    for name, scores in wanted.items():
        config, params, _ = read_model(tmp_path / name)
        np.testing.assert_allclose(score(config, params, tokens, held), scores, atol=1e-5)
        save_hf(tmp_path / "ours" / name, config, params)
        written = json.loads((tmp_path / "ours" / name / "config.json").read_text("utf-8"))
        (tmp_path / "ours" / name / "config.json").write_text(
            json.dumps(written | {"pad_token_id": 2}), "utf-8"
        )
    subprocess.run(command, check=True, capture_output=True)
    told = json.loads((tmp_path / "told.json").read_text())
    for name, scores in wanted.items():
        np.testing.assert_allclose(told[name], scores, atol=1e-6)
