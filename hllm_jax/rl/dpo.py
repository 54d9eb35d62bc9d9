"""DPO and its kin over batches of pairs: the policy, the reference beside it, and the loss of the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hllm_jax.models.decoder import Decoder
from hllm_jax.models.layout import Model
from hllm_jax.objectives.log_likelihood import chunked_log_probs
from hllm_jax.objectives.masks import held_rows
from hllm_jax.objectives.pairs import apart, both, row_weights
from hllm_jax.objectives.preference import (
    Pair,
    answers,
    dpo_sums,
    implicit_rewards,
    ipo_sums,
    kto_baseline,
    kto_sums,
    orpo_sums,
    simpo_sums,
)
from hllm_jax.objectives.routing import Routed, add_routing, apply_model
from hllm_jax.objectives.sums import Batch, Sums, Variables
from hllm_jax.rl.dpo_config import PER_TOKEN, DPOConfig
from hllm_jax.rl.roles import policy_of, reference_of

#: What a batch has besides where the reference was computed before.
PRECOMPUTED = ("reference_chosen", "reference_rejected")


@dataclasses.dataclass(frozen=True)
class Preferences:
    """What is learned from pairs.

    Attributes:
        model: the policy.
        config: of the loss.
        chunks: logits are made of so many parts of each row.

    Raises:
        ValueError: a model that is no decoder with logits.
    """

    model: Model
    config: DPOConfig
    chunks: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.model, Decoder) or self.model.config.head == "score":
            what = "a reward model" if isinstance(self.model, Decoder) else self.model.config.architecture
            raise ValueError(
                f"model.load is of the kind {what}, and {self.config.loss} compares what a decoder says "
                "of answers: load a language model"
            )

    def loss(self, variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        """Over a `PairBatch`, with the entries of the loss that `config` names.

        Of `kto` the reference point is `batch["baseline"]`, or where there is none that of the rows given.
        """
        policy, routed = self.log_probs(policy_of(variables), batch, rng)
        weights, c = batch["pair_weights"], self.config
        if c.loss == "kto":
            batch = batch if "baseline" in batch else self.with_baseline(variables, batch)
            return self._kto(policy, self.reference(variables, batch), batch, routed)
        if c.loss == "dpo":
            reference = self.reference(variables, batch)
            sums = dpo_sums(policy, reference, weights, c.scale, c.label_smoothing)
        elif c.loss == "ipo":
            sums = ipo_sums(policy, self.reference(variables, batch), weights, c.scale)
        elif c.loss == "orpo":
            sums = orpo_sums(policy, weights, c.scale)
        else:
            sums = simpo_sums(policy, weights, c.scale, c.gamma, c.label_smoothing)
        return add_routing(sums, routed, row_weights(weights))

    def scores(self, variables: Variables, batch: Batch) -> Pair:
        """The rewards that the policy stands for, float32 `[B]` each: β times its log-ratio to the reference,
        or where there is none β times its log-probability."""
        policy, _ = self.log_probs(policy_of(variables), batch, None)
        if not self.config.needs_reference:
            return Pair(self.config.scale * policy.chosen, self.config.scale * policy.rejected)
        reference = self.reference(variables, batch)
        return implicit_rewards(policy, reference, batch["pair_weights"], self.config.scale)

    def log_probs(
        self, variables: Variables, batch: Batch, rng: jax.Array | None
    ) -> tuple[Pair, Routed | None]:
        """Log-probabilities of both answers of every pair, float32 `[B]` each, and what a router noted."""
        tokens, weights = both(batch, "tokens"), both(batch, "weights")
        (x, head), routed = apply_model(
            self.model,
            variables,
            rng,
            tokens,
            method="before_head",
            segment_ids=both(batch, "segment_ids"),
            positions=both(batch, "positions"),
        )
        # What stands at t - 1 speaks of token t; the first token, which comes round, is never of an answer.
        found = chunked_log_probs(x, head, jnp.roll(tokens, -1, axis=1), self.chunks)
        weights = jnp.roll(weights.at[:, 0].set(0.0), -1, axis=1)
        return answers(apart(found), apart(weights), self.config.loss in PER_TOKEN), routed

    def reference(self, variables: Variables, batch: Batch) -> Pair:
        """The same of the reference, without a gradient: what the batch says, else computed."""
        if PRECOMPUTED[0] in batch:
            return Pair(*(batch[name] for name in PRECOMPUTED))
        found, _ = self.log_probs(reference_of(variables), batch, None)
        return Pair(*(jax.lax.stop_gradient(side) for side in found))

    def with_baseline(self, variables: Variables, batch: Batch) -> Batch:
        """The batch with KTO's reference point, `baseline` `[B]`, the same number for all.

        It is a mean over the global batch: the step asks for it before that is split.
        """
        other = mismatched(batch)
        policy, _ = self.log_probs(policy_of(variables), other, None)
        reference = self.reference(variables, other)
        weights = kto_weights(other)
        found = kto_baseline(interleaved(policy), interleaved(reference), weights)
        return {**batch, "baseline": jnp.broadcast_to(found, batch["pair_weights"].shape)}

    @property
    def before(self) -> Callable[[Variables, Batch], Batch] | None:
        """What is added to the global batch before an update, see `make_train_step`."""
        return self.with_baseline if self.config.loss == "kto" else None

    def _kto(self, policy: Pair, reference: Pair, batch: Batch, routed: Routed | None) -> Sums:
        weights, c = kto_weights(batch), self.config
        pairs = batch["pair_weights"].shape[0]
        sums = kto_sums(
            interleaved(policy),
            interleaved(reference),
            jnp.tile(jnp.array([True, False]), pairs),
            batch["baseline"][0],
            weights,
            c.scale,
            c.desirable_weight,
            c.undesirable_weight,
        )
        sums["baseline"] = (batch["baseline"][0] * jnp.sum(weights), jnp.sum(weights))
        return add_routing(sums, routed, weights[:, None])


def interleaved(sides: Pair) -> jax.Array:
    """`[B]` each -> `[2B]`, in the order of `objectives.pairs.both`."""
    return jnp.stack(sides, axis=1).reshape(-1)


def kto_weights(batch: Batch) -> jax.Array:
    """Weights `[2B]` of the examples of a batch: that of their pair, 0 for a side without an answer."""
    return jnp.repeat(batch["pair_weights"], 2) * held_rows(both(batch, "weights"))


def mismatched(batch: Batch) -> Batch:
    """The same prompts with the answers of the next pair of the batch (that of the last: of the first).

    What does not fit into the row is cut off; a side whose new answer has no token left has no weight.
    """
    found = dict(batch)
    for side in ("chosen", "rejected"):
        tokens, weights, held = (batch[f"{side}_{name}"] for name in ("tokens", "weights", "segment_ids"))
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        # Where an answer begins; a row without one has nothing to give.
        begins = jnp.argmax(weights > 0, axis=1).astype(jnp.int32)[:, None]
        others = [jnp.roll(array, -1, axis=0) for array in (tokens, weights, held, begins)]
        at = places - begins + others[3]
        inside = (places >= begins) & (at < tokens.shape[1])
        at = jnp.clip(at, 0, tokens.shape[1] - 1)
        taken = [jnp.take_along_axis(array, at, axis=1) for array in others[:3]]
        prompt = places < begins
        found[f"{side}_tokens"] = jnp.where(prompt, tokens, taken[0])
        found[f"{side}_weights"] = jnp.where(inside, taken[1], 0.0)
        found[f"{side}_segment_ids"] = jnp.where(prompt, held, jnp.where(inside, taken[2], 0))
        found[f"{side}_positions"] = jnp.broadcast_to(places, tokens.shape)
    return found
