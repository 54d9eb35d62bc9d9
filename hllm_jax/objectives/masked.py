"""Masked language models: guessing hidden tokens, and whether two texts belong together."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.objectives.language_model import token_sums
from hllm_jax.objectives.routing import add_routing, apply_model
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """See `masked_lm`."""

    model: nn.Module
    z_loss: float = 0.0

    def prepare(self, batch: Batch) -> Batch:
        """Scale `pair_weights` by Σ w / Σ p over the whole batch, so that Σ w is the one denominator."""
        if "pair_weights" not in batch:
            return batch
        pairs = jnp.sum(batch["pair_weights"])
        scale = jnp.sum(batch["weights"]) / jnp.where(pairs == 0, 1.0, pairs)
        return {**batch, "pair_weights": batch["pair_weights"] * scale}

    def __call__(self, variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        """Sums over a `MaskedBatch` or a `SentencePairBatch`."""
        pairs = "pair_labels" in batch
        output, routed = apply_model(
            self.model,
            variables,
            rng,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            token_types=batch["token_types"] if pairs else None,
        )
        sums = token_sums(output.logits, batch["targets"], batch["weights"], self.z_loss)
        sums = add_routing(sums, routed, batch["weights"])
        if not pairs:
            return sums
        if output.pair_logits is None:
            raise ValueError(
                "rows of sentence pairs (objective.masked_lm.rows: nsp or sop) need an encoder with a head "
                "for pairs; choose rows: packed or full_sentences for this one"
            )
        pair = token_sums(output.pair_logits, batch["pair_labels"], batch["pair_weights"])
        cost, total = sums["loss"]
        sums["nll"] = sums.get("nll", sums["loss"])
        sums["loss"] = (cost + pair["loss"][0], total)
        sums["pair_loss"], sums["pair_accuracy"] = pair["loss"], pair["accuracy"]
        return sums


def masked_lm(model: nn.Module, z_loss: float = 0.0) -> Loss:
    """The loss of an encoder on rows with hidden tokens; on sentence pairs, plus that of the pair.

        loss = Σ w·nll / Σ w + Σ p·nll(pair) / Σ p

    Each mean has its own denominator over the global batch (Devlin et al. 2019, appendix A.2: "the sum of
    the mean masked LM likelihood and the mean next sentence prediction likelihood"; sentence order: Lan et
    al. 2020). So that the gradient is exact for any split of the batch, `prepare` sees it before it is split.

    Args:
        model: `model.apply(variables, tokens, segment_ids=…, positions=…, token_types=…, deterministic=…)`
            has `logits` `[B, L, V]` and, for pairs, `pair_logits` `[B, 2]`.
        z_loss: see `token_sums`.

    Returns:
        A loss with the entries of `token_sums`, for pairs also `nll` (of the tokens alone), `pair_loss` and
        `pair_accuracy`.

    Raises:
        ValueError: (the loss) the batch has pairs and the model no head for them.
    """
    return MaskedLM(model, z_loss)
