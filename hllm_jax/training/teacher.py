"""A teacher beside the model that is trained: read, never trained, a part of the same state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from hllm_jax.models.layout import Model, init_variables
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.objectives.distillation import TEACHER
from hllm_jax.parallel.layout import Load
from hllm_jax.training.pretrained import OpenPretrained

if TYPE_CHECKING:
    from hllm_jax.interop.models import Place
    from hllm_jax.tokenizers.tokenizer import Tokenizer


def build_teacher(teacher: OpenPretrained, student: Model) -> Model:
    """The teacher, computed as the student is. Nothing of it is kept for a backward pass, so that there is
    nothing to compute again."""
    return teacher.config.build(dataclasses.replace(student.execution, remat="none"))


def beside_teacher(student: Model, teacher: Model) -> Callable[[jax.Array], dict[str, Any]]:
    """Makes the variables of both from a key, for `Layout(variables=…)`: the teacher's in `teacher`."""
    return lambda key: {**init_variables(student, key), TEACHER: init_variables(teacher, key)}


def read_teacher(teacher: OpenPretrained, scan_layers: bool) -> dict[tuple[str, ...], Load]:
    """Reads the teacher's weights, for `Layout.init(others=…)`."""

    def read(place: Place) -> dict[str, Any]:
        return {"params": teacher.read(scan_layers, lambda path, array: place(f"params/{path}", array))}

    return {(TEACHER,): read}


def is_student(path: tuple[str, ...]) -> bool:
    """The predicate of what trains."""
    return path[0] != TEACHER


def of_student(variables: dict[str, Any]) -> dict[str, Any]:
    """The variables without the teacher's."""
    return {name: part for name, part in variables.items() if name != TEACHER}


def tokenizer_of_teacher(teacher: OpenPretrained, name: str) -> Tokenizer:
    """The tokenizer of the teacher, which a student that begins from nothing takes.

    Raises:
        ValueError: it has none.
    """
    if teacher.tokenizer is None:
        raise ValueError(f"distill.teacher={name} holds no tokenizer")
    return teacher.tokenizer


def check_teacher(
    teacher: OpenPretrained, name: str, tokenizer: Tokenizer, student: Model, length: int
) -> None:
    """Refuse two models that do not read and write the same tokens.

    Args:
        teacher: a MODEL.
        name: of it, for messages.
        tokenizer: of the student.
        student: the other model.
        length: of the rows.

    Raises:
        ValueError: one of them is no decoder, the teacher has another tokenizer, or rows are too long for it.
    """
    if not isinstance(teacher.config, DecoderConfig) or not isinstance(student.config, DecoderConfig):
        raise ValueError(
            f"distill.teacher={name}: teacher and student must be decoders, which predict every next token"
        )
    if tokenizer_of_teacher(teacher, name).fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"distill.teacher={name} has another tokenizer than the student (model.load): distillation on "
            "logits needs one vocabulary. Begin the student from nothing (model.preset or model.decoder), or "
            "from a run with the tokenizer of the teacher"
        )
    if teacher.config.max_length < length:
        raise ValueError(
            f"train.sequence_length={length} is longer than the max_length {teacher.config.max_length} of "
            f"distill.teacher={name}"
        )
