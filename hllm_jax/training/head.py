"""New heads on pretrained models: for a task on an encoder, and one number for a text on any model."""

from __future__ import annotations

import dataclasses

from hllm_jax.models.spec import DecoderConfig, EncoderConfig, Spec
from hllm_jax.models.task import TaskConfig

#: What the one class of an encoder is called whose head gives a score.
SCORE = "score"


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


def with_score(spec: Spec) -> Spec:
    """The model with a head that gives one number, in place of those it has: a reward model.

    A decoder gives one at every token (`Decoder.score`), an encoder one for a text (`Encoder.score`),
    whatever its class is called.

    Raises:
        ValueError: an encoder-decoder.
    """
    if isinstance(spec, DecoderConfig):
        return spec if spec.head == "score" else dataclasses.replace(spec, head="score")
    if not isinstance(spec, EncoderConfig):
        raise ValueError(
            f"model.load is a model of the kind {spec.architecture}: scores are for decoders and encoders"
        )
    one = spec.task is not None and spec.task.kind == "sequence" and spec.task.outputs == 1
    return spec if one else with_head(spec, "sequence", (SCORE,))
