"""From the `objective:` section to the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hllm_jax.objectives.language_model import causal_lm
from hllm_jax.objectives.masked import masked_lm
from hllm_jax.objectives.sequence_to_sequence import seq2seq

if TYPE_CHECKING:
    import flax.linen as nn

    from hllm_jax.data.objective import ObjectiveConfig
    from hllm_jax.objectives.sums import Loss


def make_loss(objective: ObjectiveConfig, model: nn.Module, z_loss: float = 0.0, chunks: int = 1) -> Loss:
    """The loss of an objective over the batches that the same section makes.

    Args:
        objective: the section.
        model: of the kind `objective.model_kind`.
        z_loss: weight of the squared log-partition.
        chunks: see `causal_lm`; the other models have all their logits at once.
    """
    if objective.model_kind == "encoder":
        return masked_lm(model, z_loss)
    if objective.model_kind == "encoder_decoder":
        smoothing = objective.settings().label_smoothing if objective.kind == "seq2seq" else 0.0
        return seq2seq(model, smoothing, z_loss)
    return causal_lm(model, z_loss, chunks)
