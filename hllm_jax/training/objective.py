"""Which objective goes with which model and which data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hllm_jax.config import Invalid
from hllm_jax.data.objective import MODELS, ObjectiveConfig
from hllm_jax.models.spec import EncoderConfig, Spec

if TYPE_CHECKING:
    from hllm_jax.data.config import DataConfig


def model_problems(objective: ObjectiveConfig, spec: Spec) -> list[tuple[str, str]]:
    """Field and message for everything that an objective wants of a model and does not find."""
    if spec.architecture != objective.model_kind:
        fitting = [name for name, wanted in MODELS.items() if wanted == spec.architecture]
        message = (
            f"{objective.kind} is for models of the kind {objective.model_kind}, and this one is of the kind "
            f"{spec.architecture}: choose {' or '.join(fitting)}, or another model"
        )
        return [("objective.kind", message)]
    problems: list[tuple[str, str]] = []
    settings = objective.settings()
    if isinstance(spec, EncoderConfig):
        if not spec.masked_head:
            message = "the encoder has no head that guesses hidden tokens: set model.encoder.masked_head"
            problems.append(("objective.kind", message))
        if settings.rows in ("nsp", "sop") and not (spec.pair_head and spec.token_types >= 2):
            message = f"{settings.rows} asks about two texts: the encoder needs pair_head and 2 token_types"
            problems.append(("objective.masked_lm.rows", message))
    pairs = objective.kind == "blank_infilling" and settings.positions == "pairs"
    if pairs and spec.position != "learned_2d":
        message = (
            f"pairs of positions need a model with a table for each, and this one's are {spec.position}: "
            "choose single"
        )
        problems.append(("objective.blank_infilling.positions", message))
    if objective.kind == "seq2seq" and (settings.target_length or 0) > spec.max_length:
        message = f"{settings.target_length} is longer than the model's max_length {spec.max_length}"
        problems.append(("objective.seq2seq.target_length", message))
    return problems


def data_problems(objective: ObjectiveConfig, data: DataConfig) -> list[tuple[str, str]]:
    """Field and message for everything that an objective cannot do with a data section."""
    if objective.kind == "seq2seq" and data.overlong == "split":
        return [("data.overlong", "a pair of texts cannot be split: choose error, truncate or drop")]
    rows = objective.settings().rows if objective.kind == "masked_lm" else "packed"
    if rows != "packed" and data.packing == "first_fit":
        message = f"first_fit keeps documents whole, and {rows} cuts them after sentences: choose concat"
        return [("data.packing", message)]
    return []


def check_objective(objective: ObjectiveConfig, spec: Spec) -> None:
    """Refuse a loaded model that the objective is not for.

    Raises:
        Invalid: names everything that does not fit.
    """
    if problems := model_problems(objective, spec):
        raise Invalid(*problems)
