"""GRPO, RLOO and best-of-n: what is learned from groups of answers to a prompt, without a value model."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hllm_jax.models.decoder import Decoder
from hllm_jax.objectives.advantages import truncation_policy
from hllm_jax.objectives.groups import best_of_group, degenerate_groups, group_advantages, leave_one_out
from hllm_jax.objectives.kl import kl_estimate
from hllm_jax.objectives.masks import held_rows, only, row_sums, weighted
from hllm_jax.objectives.policy import grpo_sums, rloo_sums
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables
from hllm_jax.rl.config import GRPOConfig, RolloutConfig
from hllm_jax.rl.iteration import Experience
from hllm_jax.rl.roles import policy_of, reference_of
from hllm_jax.rl.rollout import Rollout, answer_likelihood


def make_grpo(
    model: Decoder, config: GRPOConfig, settings: RolloutConfig, vocab: int, chunks: int = 1
) -> tuple[Experience, Loss]:
    """What an `Iteration` learns from.

    Args:
        model: the policy.
        config: of the method.
        settings: of the answers.
        vocab: ids that could be sampled.
        chunks: the logits of answers are made of so many parts; divides `settings.max_tokens`.

    Returns:
        The experience, whose batch has `tokens`, `lengths`, `begins`, `actions`, `log_probs`, `advantage`
        `[B]` and, with a reference, `reference` and `kl` `[B]` (k1, nats of the whole answer); and the loss
        over it, with the sums of `grpo_sums` or `rloo_sums` and `entropy` (`best_of_n`: `loss`, the nll of
        the chosen answers, and `entropy`).
    """

    def experience(
        variables: Variables, rollout: Rollout, scores: jax.Array
    ) -> tuple[dict[str, jax.Array], Sums]:
        begins, scored = rollout.begins, jnp.isfinite(scores)
        scores, actions = truncation_policy(
            jnp.where(scored, scores, 0.0),
            rollout.actions,
            ~rollout.ended,
            config.truncation,
            config.truncation_value,
        )
        actions = jnp.where(scored[:, None], actions, 0.0)
        batch = {
            "tokens": rollout.tokens,
            "lengths": rollout.lengths,
            "begins": begins,
            "actions": actions,
            "log_probs": rollout.log_probs,
        }
        sums: Sums = {}
        if config.needs_reference:
            of_reference = answer_likelihood(
                model,
                reference_of(variables),
                rollout.tokens,
                rollout.lengths,
                begins,
                settings,
                vocab,
                chunks,
            )
            batch["reference"] = of_reference.log_probs
            sampled_kl = (
                only(rollout.log_probs, rollout.actions),
                only(of_reference.log_probs, rollout.actions),
            )
            sums["kl"] = weighted(kl_estimate(*sampled_kl, "k3"), rollout.actions)
            batch["kl"] = row_sums(kl_estimate(*sampled_kl, "k1"), rollout.actions)
        held = held_rows(actions).reshape(-1, settings.group)
        sums["degenerate"] = degenerate_groups(scores.reshape(held.shape), held)
        if config.loss == "rloo":
            if "kl" in batch:
                scores = scores - config.beta * batch["kl"]
            advantages = leave_one_out(scores.reshape(held.shape), held)
        elif config.loss == "best_of_n":
            advantages = best_of_group(scores.reshape(held.shape), held)
        else:
            scale = config.scale or ("none" if config.loss == "dr_grpo" else "std")
            advantages = group_advantages(scores.reshape(held.shape), scale, held)
        batch["advantage"] = advantages.reshape(-1)
        return batch, sums

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        del rng
        found = answer_likelihood(
            model,
            policy_of(variables),
            batch["tokens"],
            batch["lengths"],
            batch["begins"],
            settings,
            vocab,
            chunks,
        )
        shared = found.log_probs, batch["log_probs"], batch["advantage"], batch["actions"]
        if config.loss == "rloo":
            sums = rloo_sums(*shared, config.clip_low, config.clip_high)
        elif config.loss == "best_of_n":
            chosen = batch["actions"] * batch["advantage"][:, None]
            sums = {"loss": weighted(-found.log_probs, chosen)}
        else:
            sums = grpo_sums(
                *shared,
                variant=config.loss,
                reference=batch["reference"] if config.beta > 0 else None,
                beta=config.beta,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                dual_clip=config.dual_clip,
                length=settings.max_tokens,
            )
        sums["entropy"] = weighted(jax.lax.stop_gradient(found.entropy), batch["actions"])
        return sums

    return experience, loss
