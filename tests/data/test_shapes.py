"""Shapes of batches before there is data are those of the batches that the transforms make."""

from __future__ import annotations

import pytest

from hllm_jax.config import load_config
from hllm_jax.data.objective import ObjectiveConfig
from hllm_jax.data.shapes import batch_shapes, task_shapes
from hllm_jax.data.task import TaskDataConfig
from hllm_jax.testing.tokenizer import ByteTokenizer

OBJECTIVES = {
    "causal": (),
    "prefix_lm": (),
    "masked_lm": (),
    "full_sentences": ("kind=masked_lm", "masked_lm.rows=full_sentences"),
    "nsp": ("kind=masked_lm", "masked_lm.rows=nsp"),
    "sop": ("kind=masked_lm", "masked_lm.rows=sop"),
    "span_corruption": (),
    "dense_spans": ("kind=span_corruption", "span_corruption={density: 0.5, mean_span: 4.0}"),
    "blank_infilling": (),
    "single": ("kind=blank_infilling", "blank_infilling.positions=single"),
    "seq2seq": (),
    "short_targets": ("kind=seq2seq", "seq2seq.target_length=24"),
}


class Special(ByteTokenizer):
    """With every special token that an objective asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_id, self.sep_id, self.mask_id = 1, 2, 3
        self.sentinel_ids = tuple(range(100, 140))
        self.frame = self.put_frame

    def put_frame(self, first: list[int], second: list[int] | None) -> tuple[list[int], list[int]]:
        """`[CLS]` and one text or two."""
        ids = [1, *first, *(second or [])]
        return ids, [0] * len(ids)

    @property
    def special_ids(self) -> dict[str, int]:
        return {"<|startofpiece|>": 3, "<|endofpiece|>": 4}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batches_of_an_objective(name: str) -> None:
    objective = load_config(ObjectiveConfig, overrides=OBJECTIVES[name] or (f"kind={name}",))
    batch = objective.transform(Special(), 64).empty(6)
    two = objective.kind == "blank_infilling" and objective.settings().positions == "pairs"
    assert batch_shapes(objective, 6, 64, two) == {k: (v.shape, str(v.dtype)) for k, v in batch.items()}


@pytest.mark.parametrize("kind", ["sequence", "tokens", "span"])
def test_batches_of_a_task(kind: str) -> None:
    labels = () if kind == "span" else ("a", "b")
    task = TaskDataConfig(kind=kind, labels=labels)
    batch = task.transform(Special(), 96).empty(6)
    assert task_shapes(task, 6, 96) == {k: (v.shape, str(v.dtype)) for k, v in batch.items()}
