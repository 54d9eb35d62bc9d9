"""Proximal policy optimisation of a language model: what a rollout teaches, and the loss (Schulman et al.
2017; for language models Ziegler et al. 2019, Ouyang et al. 2022).

Everything here is a pure function of a `Rollout` and the variables of the four models; `PPOConfig` names the
details and their sources, `rl/iteration.py` runs it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hllm_jax.objectives.advantages import clip_scores, gae, token_rewards, truncation_policy
from hllm_jax.objectives.kl import Controller, adaptive_kl, fixed_kl
from hllm_jax.objectives.masks import at_last, held_rows, only, row_means, row_sums, weighted, whiten
from hllm_jax.objectives.policy import ppo_policy_sums, ppo_sums, value_sums
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables
from hllm_jax.rl.config import RolloutConfig
from hllm_jax.rl.iteration import Experience
from hllm_jax.rl.ppo_config import KLConfig, PPOConfig
from hllm_jax.rl.roles import Name, Roles
from hllm_jax.rl.rollout import Rollout, answer_likelihood, held_tokens

#: The name of the coefficient in `TrainState.control`.
COEFFICIENT = "kl_coefficient"


def first_control(config: PPOConfig) -> dict[str, float]:
    """`TrainState.control` of a new run, for `Layout`."""
    return {COEFFICIENT: config.kl.coefficient}


def make_experience(
    roles: Roles, config: PPOConfig, settings: RolloutConfig, vocab: int, chunks: int = 1
) -> Experience:
    """What is learned from a rollout: the reference and the value model read it, then `to_learn`.

    Args:
        roles: the models.
        config: of PPO.
        settings: answers were sampled with them.
        vocab: ids that could be sampled.
        chunks: see `answer_likelihood`.
    """

    def experience(
        variables: Variables, rollout: Rollout, scores: jax.Array
    ) -> tuple[dict[str, jax.Array], Sums]:
        base = roles.view("reference", variables)
        told = answer_likelihood(
            roles.policy, base, rollout.tokens, rollout.lengths, rollout.begins, settings, vocab, chunks
        )
        values = state_values(roles, variables, rollout.tokens, rollout.lengths)
        # A fixed one is read from the config of now; `control` has that of the config the run began with.
        fixed = config.kl.kind == "fixed"
        coefficient = config.kl.coefficient if fixed else variables["control"][COEFFICIENT]
        return to_learn(config, rollout, scores, told.log_probs, values, coefficient)

    return experience


def to_learn(
    config: PPOConfig,
    rollout: Rollout,
    scores: jax.Array,
    reference: jax.Array,
    values: jax.Array,
    coefficient: jax.Array | float,
) -> tuple[dict[str, jax.Array], Sums]:
    """Advantages and returns of the actions of a rollout.

        score ← clip((score - shift) / scale)                 then what `truncation` makes of it
        r_t   = -β·kl_t + [t is the last action]·score        whitened without their mean, if wanted
        A, R  = gae(r, V)                                     A whitened over all actions, if wanted

    By hand: a score of 5 with shift 1 and scale 2 is 2; an answer of two actions with log-probs (-1, -2),
    reference (-1.5, -1) and β = 0.1 has k1 = (0.5, -1), rewards (-0.05, 0.1 + 2), and with values (1, 0.5),
    γ = 1 and λ = 0.5 δ = (-0.55, 1.6), A = (0.25, 1.6), R = (1.25, 2.1).

    Args:
        config: of PPO.
        rollout: B rows.
        scores: float `[B]`; NaN is no score: the row is left out.
        reference: float `[B, L]`, log-probabilities of the reference.
        values: float `[B, L]`, see `state_values`.
        coefficient: β.

    Returns:
        Arrays for the loss (`[B, L]`, and for the table of rollouts `score`, `kl` and `advantage` `[B]`), and
        sums for the log: `kl` of a token and `answer_kl` of an answer among them, over all that was sampled.
    """
    scored = jnp.isfinite(scores)
    shaped = clip_scores(
        (jnp.where(scored, scores, 0.0) - config.score_shift) / config.score_scale, config.score_clip
    )
    sampled = rollout.actions
    shaped, actions = truncation_policy(
        shaped, sampled, ~rollout.ended, config.truncation, config.truncation_value
    )
    actions = actions * scored.astype(jnp.float32)[:, None]
    rewards, kl = token_rewards(
        shaped, rollout.log_probs, reference, sampled, coefficient, config.kl.estimator
    )
    rewards = only(rewards, actions)
    if config.whiten_rewards:
        rewards = whiten(rewards, actions, shift_mean=False)
    advantages, returns = gae(rewards, values, actions, config.gamma, config.lam)
    shown = row_means(advantages, actions)
    if config.whiten_advantages:
        advantages = whiten(advantages, actions)
    answers, of_answers = held_rows(sampled), row_sums(kl, sampled)
    batch = {
        "tokens": rollout.tokens,
        "lengths": rollout.lengths,
        "begins": rollout.begins,
        "actions": actions,
        "log_probs": rollout.log_probs,
        "values": only(values, actions),
        "advantages": advantages,
        "returns": returns,
        "score": shaped,
        "kl": of_answers,
        "advantage": shown,
    }
    beta, one = jnp.asarray(coefficient, jnp.float32), jnp.ones((), jnp.float32)
    sums = {
        "kl": weighted(kl, sampled),
        "answer_kl": weighted(of_answers, answers),
        COEFFICIENT: (beta, one),
        "score": weighted(shaped, held_rows(actions)),
        "value": weighted(values, actions),
        "return": weighted(returns, actions),
    }
    return batch, sums


def make_loss(roles: Roles, config: PPOConfig, settings: RolloutConfig, vocab: int, chunks: int = 1) -> Loss:
    """PPO's loss of a minibatch of `to_learn`: clipped ratio, clipped value and entropy (`ppo_sums`).

    Args: as `make_experience`. The loss's variables are the tree of `Roles`.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        del rng  # no dropout: there was none when the answers were sampled
        tokens, lengths, actions = batch["tokens"], batch["lengths"], batch["actions"]
        told = answer_likelihood(
            roles.policy,
            roles.view("policy", variables),
            tokens,
            lengths,
            batch["begins"],
            settings,
            vocab,
            chunks,
        )
        policy = ppo_policy_sums(
            told.log_probs,
            batch["log_probs"],
            batch["advantages"],
            actions,
            config.clip,
            config.clip_high,
            config.dual_clip,
        )
        values = state_values(roles, variables, tokens, lengths)
        value = value_sums(values, batch["values"], batch["returns"], actions, config.value_clip)
        return ppo_sums(
            policy, value, told.entropy, actions, config.value_coefficient, config.entropy_coefficient
        )

    return loss


def state_values(roles: Roles, variables: Variables, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """What the value model expects, float32 `[B, L]`: index t is the value of what stands before token t.

    Args:
        roles: the models.
        variables: their tree.
        tokens, lengths: of a rollout, `[B, L]` and `[B]`.
    """
    return jnp.roll(_scores(roles, "value", variables, tokens, held_tokens(tokens, lengths)), 1, axis=1)


def reward_scores(roles: Roles, variables: Variables, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The reward model's score of whole texts, float32 `[B]`: that of their last token, by length.

    Args:
        roles: the models.
        variables: their tree.
        tokens, segment_ids: int `[B, L]`; 0 marks what stands behind the end of a row.
    """
    found = _scores(roles, "reward", variables, tokens, segment_ids)
    return found if found.ndim == 1 else at_last(found, segment_ids != 0)


def make_controller(config: KLConfig, answers: int) -> Controller:
    """From the coefficient and the KL of whole answers of an iteration to the next coefficient.

    Args:
        config: fixed or adaptive.
        answers: of an iteration.
    """
    if config.kind == "fixed":
        return fixed_kl()
    return adaptive_kl(config.target, answers / config.horizon, config.limit)


def make_adapt(config: KLConfig, answers: int) -> Any:
    """The change of `TrainState.control` after an iteration, for `Iteration`; see `make_controller`.

    A KL that is not finite changes nothing.
    """
    follow = make_controller(config, answers)

    def adapt(control: dict[str, jax.Array], seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
        before, kl = control[COEFFICIENT], seen["answer_kl"]
        after = follow(before, jnp.where(jnp.isfinite(kl), kl, config.target))
        return {**control, COEFFICIENT: after}

    return adapt


def _scores(
    roles: Roles, name: Name, variables: Variables, tokens: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    model: Any = roles.value if name == "value" else roles.reward
    found: jax.Array = model.apply(roles.view(name, variables), tokens, segment_ids, method="score")
    return found
