"""A new head for a task on a pretrained encoder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from hllm_jax.models.layout import Model, parameter_shapes
from hllm_jax.models.spec import EncoderConfig, Spec
from hllm_jax.models.task import TaskConfig
from hllm_jax.parallel.state import Predicate, matching, nothing
from hllm_jax.training.checkpoints import read_manifest
from hllm_jax.training.pretrained import open_pretrained, spec_of

if TYPE_CHECKING:
    from hllm_jax.data.task import TaskDataConfig
    from hllm_jax.interop.models import Place
    from hllm_jax.models.config import ModelConfig
    from hllm_jax.parallel.layout import Load
    from hllm_jax.tokenizers.tokenizer import Tokenizer
    from hllm_jax.training.run import Run


class TaskBeginning(NamedTuple):
    """What `begin_task` returns.

    Attributes:
        tokenizer: of the encoder.
        model: the encoder with the head, without parameters.
        params: reads the weights of the encoder onto their devices, for `Layout.init`; None where the run is
            resumed.
        fresh: the variables that nothing was loaded for, for `Layout.init`.
    """

    tokenizer: Tokenizer
    model: Model
    params: Load | None
    fresh: Predicate


def begin_task(run: Run, model: ModelConfig, task: TaskDataConfig) -> TaskBeginning:
    """Tokenizer, encoder with the head of a task, and initial weights of a run, new or resumed.

    Args:
        run: its folder keeps the tokenizer.
        model: the `model` section; `load` names the encoder.
        task: with its labels.

    Raises:
        ValueError: the loaded model is no encoder, or has no tokenizer.
    """
    assert model.load is not None, "checked by the config"
    if run.resumed is not None:
        folder = run.checkpoints.path(run.resumed)
        tokenizer = run.tokenizer(lambda: _own(open_pretrained(model.load or "").tokenizer, model))
        saved = spec_of(folder, read_manifest(folder))
        return TaskBeginning(tokenizer, model.build(tokenizer.vocab_size, loaded=saved), None, nothing)
    loaded = open_pretrained(model.load)
    spec = with_head(loaded.config, task.kind, task.labels)
    tokenizer = run.tokenizer(lambda: _own(loaded.tokenizer, model))
    unused = _top(loaded.config) - _top(spec)
    fresh = nothing
    if spec.task != getattr(loaded.config, "task", None):
        head = f"{task.kind}_head"
        unused, fresh = unused | {head}, matching(f"params/{head}/")

    def read(place: Place | None) -> dict[str, Any]:
        params = loaded.read(model.scan_layers, place)
        return {name: sub for name, sub in params.items() if name not in unused}

    return TaskBeginning(tokenizer, model.build(tokenizer.vocab_size, loaded=spec), read, fresh)


def with_head(spec: Spec, kind: str, labels: tuple[str, ...]) -> EncoderConfig:
    """The encoder with the head of a task instead of those of its pretraining.

    The head of a class of texts reads the pooler, and where there is none has a dense layer of its own.

    Raises:
        ValueError: it is no encoder.
    """
    if not isinstance(spec, EncoderConfig):
        raise ValueError(
            f"model.load is a model of the kind {spec.architecture}: heads for tasks stand on encoders "
            "(BERT, RoBERTa, ALBERT); a decoder learns to answer by the recipe sft"
        )
    old = spec.task
    if old is not None and (old.kind, old.labels) == (kind, labels):
        return spec
    pooler = spec.pooler and kind == "sequence"
    task = TaskConfig(kind=kind, labels=labels, dense=kind == "sequence" and not pooler)  # pyrefly: ignore
    return dataclasses.replace(spec, masked_head=False, pair_head=False, pooler=pooler, task=task)


def _top(spec: Spec) -> set[str]:
    """First parts of the names of the parameters."""
    return {path.partition("/")[0] for path in parameter_shapes(spec)}


def _own(tokenizer: Tokenizer | None, model: ModelConfig) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(
            f"model.load={model.load} holds no tokenizer, and training needs the one it belongs to"
        )
    return tokenizer
