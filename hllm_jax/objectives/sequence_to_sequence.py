"""Sequence to sequence: the decoder predicts the target, given the source."""

from __future__ import annotations

import flax.linen as nn
import jax

from hllm_jax.objectives.language_model import token_sums
from hllm_jax.objectives.routing import add_routing, apply_model
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables


def seq2seq(model: nn.Module, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
    """The loss of an encoder–decoder: of translation and the like, and of span corruption.

    Args:
        model: `model.apply(variables, tokens, decoder_tokens, segment_ids=…, decoder_segment_ids=…,
            positions=…, decoder_positions=…, deterministic=…) -> (logits [B, T, V], cache)`.
        label_smoothing: see `token_sums` (Vaswani et al. 2017: 0.1).
        z_loss: see `token_sums`.

    Returns:
        A loss over a `Seq2SeqBatch` with the entries of `token_sums`.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        (logits, _), routed = apply_model(
            model,
            variables,
            rng,
            batch["tokens"],
            batch["decoder_tokens"],
            segment_ids=batch["segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            positions=batch["positions"],
            decoder_positions=batch["decoder_positions"],
        )
        sums = token_sums(logits, batch["targets"], batch["weights"], z_loss, label_smoothing)
        return add_routing(sums, routed, batch["weights"])

    return loss
