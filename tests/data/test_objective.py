"""The `objective:` section: settings for another kind, model or data are refused, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hllm_jax.config import ConfigError, Invalid
from hllm_jax.data.objective import MODELS, MaskedLMConfig, ObjectiveConfig, Seq2SeqConfig
from hllm_jax.recipes import load_run_config

CONFIG = """
recipe: pretrain
run: {dir: unused}
model: {MODEL}
objective: OBJECTIVE
data: {packing: concat}
train: {steps: 10, sequence_length: 64}
"""
DECODER = "decoder: {layers: 1, embed: 16, heads: 2, kv_heads: 2, max_length: 64}"
ENCODER = "encoder: {layers: 1, embed: 16, heads: 2, kv_heads: 2, max_length: 64"
BOTH = "encoder_decoder: {layers: 1, embed: 16, heads: 2, kv_heads: 2, max_length: 64}"


def problems(tmp_path: Path, model: str, objective: str, *overrides: str) -> list[tuple[str | None, str]]:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("MODEL", model).replace("OBJECTIVE", objective), encoding="utf-8")
    try:
        load_run_config(path, overrides)
    except ConfigError as error:
        return [(problem.key, problem.message) for problem in error.problems]
    return []


@pytest.mark.parametrize("kind", MODELS)
def test_every_objective_has_a_kind_of_model(tmp_path: Path, kind: str) -> None:
    models = {"decoder": DECODER, "encoder": ENCODER + "}", "encoder_decoder": BOTH}
    more = ", blank_infilling: {positions: single}" if kind == "blank_infilling" else ""
    for name, model in models.items():
        found = problems(tmp_path, model, f"{{kind: {kind}{more}}}")
        if name == MODELS[kind]:
            assert found == []
        else:
            ((key, message),) = found
            assert key == "objective.kind"
            assert f"{kind} is for models of the kind {MODELS[kind]}, and this one is" in message


def test_pairs_of_positions_need_a_model_that_has_them(tmp_path: Path) -> None:
    ((key, message),) = problems(tmp_path, DECODER, "{kind: blank_infilling}")
    assert key == "objective.blank_infilling.positions"
    assert message.endswith("this one's are rope: choose single")


def test_settings_of_another_kind_are_refused(tmp_path: Path) -> None:
    ((key, message),) = problems(tmp_path, DECODER, "{kind: causal, masked_lm: {share: 0.2}}")
    assert key == "objective.masked_lm"
    assert message == "is not used: objective.kind is causal; remove it, or set kind: masked_lm"


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"share": 0.0}, ["share"]),
        ({"mask": 0.95, "random": 0.1}, ["random"]),
        ({"ngram": 0, "duplicates": 0, "short": 1.0}, ["ngram", "duplicates", "short"]),
    ],
)
def test_impossible_numbers_are_refused(settings: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        MaskedLMConfig(**settings)
    assert [key for key, _ in caught.value.problems] == keys


def test_all_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        ENCODER + ", masked_head: false, pair_head: false}",
        "{kind: masked_lm, masked_lm: {rows: sop}}",
        "data.packing=first_fit",
        "log.samples.prompts=[Once]",
    )
    assert {key for key, _ in found} == {
        "objective.kind",
        "objective.masked_lm.rows",
        "data.packing",
        "log.samples.prompts",
    }


def test_pairs_of_texts_are_not_split_nor_longer_than_the_model(tmp_path: Path) -> None:
    objective = "{kind: seq2seq, seq2seq: {target_length: 100}}"
    found = problems(tmp_path, BOTH, objective, "data.overlong=split")
    assert {key for key, _ in found} == {"objective.seq2seq.target_length", "data.overlong"}


def test_defaults_are_those_of_the_papers() -> None:
    masked = ObjectiveConfig(kind="masked_lm").settings()
    assert (masked.share, masked.mask, masked.random) == (0.15, 0.8, 0.1)
    spans = ObjectiveConfig(kind="span_corruption").settings()
    assert (spans.density, spans.mean_span) == (0.15, 3.0)
    blanks = ObjectiveConfig(kind="blank_infilling").settings()
    assert (blanks.share, blanks.mean_span) == (0.15, 3.0)
    assert ObjectiveConfig(kind="seq2seq").settings() == Seq2SeqConfig(label_smoothing=0.1)
    assert ObjectiveConfig().settings() is None
