"""What a batch will look like, before there is a tokenizer or any data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hllm_jax.data.objective import ObjectiveConfig

if TYPE_CHECKING:
    from hllm_jax.data.task import TaskDataConfig

Shapes = dict[str, tuple[tuple[int, ...], str]]


def batch_shapes(objective: ObjectiveConfig, rows: int, length: int, two_positions: bool = False) -> Shapes:
    """Name -> (shape, dtype) of the batches that an objective reads, as `data.batch` describes them.

    Args:
        objective: the section.
        rows: B.
        length: L.
        two_positions: the model has a place in the text and one in the span.
    """
    settings: Any = objective.settings()
    row: tuple[int, ...] = (rows, length)
    ids = ("tokens", "targets", "weights", "segment_ids", "positions")
    shapes: Shapes = {name: (row, _dtype(name)) for name in ids}
    if objective.kind == "masked_lm" and settings.rows in ("nsp", "sop"):
        shapes["token_types"] = (row, "int32")
        shapes |= {name: ((rows,), _dtype(name)) for name in ("pair_labels", "pair_weights")}
    if objective.kind in ("prefix_lm", "blank_infilling"):
        shapes["prefix"] = (row, "int32")
    if objective.kind == "blank_infilling" and two_positions:
        shapes["positions"] = ((rows, length, 2), "int32")
    if objective.model_kind == "encoder_decoder":
        target = (rows, _target_length(objective, length))
        shapes |= {name: (target, _dtype(name)) for name in ("targets", "weights")}
        for name in ("decoder_tokens", "decoder_segment_ids", "decoder_positions"):
            shapes[name] = (target, "int32")
    return shapes


def task_shapes(task: TaskDataConfig, rows: int, length: int) -> Shapes:
    """As `batch_shapes`, for fine-tuning an encoder on a task."""
    row: tuple[int, ...] = (rows, length)
    of_row: tuple[int, ...] = (rows,)
    shapes: Shapes = dict.fromkeys(("tokens", "segment_ids", "positions", "token_types"), (row, "int32"))
    if task.kind == "sequence":
        return shapes | {"labels": (of_row, "int32"), "weights": (of_row, "float32")}
    if task.kind == "tokens":
        return shapes | {"targets": (row, "int32"), "weights": (row, "float32")}
    shapes |= {"starts": (of_row, "int32"), "ends": (of_row, "int32")}
    return shapes | {"weights": (of_row, "float32"), "context": (row, "int32")}


def pair_shapes(rows: int, length: int, reference: bool = False) -> Shapes:
    """As `batch_shapes`, for pairs of answers; with what a reference says of them, if that comes along."""
    shapes: Shapes = {
        f"{side}_{name}": ((rows, length), _dtype(name))
        for side in ("chosen", "rejected")
        for name in ("tokens", "weights", "segment_ids", "positions")
    }
    numbers = ("margins", "pair_weights", *(("reference_chosen", "reference_rejected") if reference else ()))
    return shapes | dict.fromkeys(numbers, ((rows,), "float32"))


def prompt_shapes(rows: int, window: int) -> Shapes:
    """As `batch_shapes`, for prompts of at most `window` tokens."""
    shapes: Shapes = {"tokens": ((rows, window), "int32")}
    return shapes | dict.fromkeys(("lengths", "records"), ((rows,), "int32"))


def _target_length(objective: ObjectiveConfig, length: int) -> int:
    from hllm_jax.data.transforms.spans import row_lengths

    settings: Any = objective.settings()
    if objective.kind == "span_corruption":
        return row_lengths(length, settings.density, settings.mean_span)[1]
    return length if settings.target_length is None else int(settings.target_length)


def _dtype(name: str) -> str:
    return "float32" if name.endswith("weights") else "int32"
