"""What is minimised: pure functions from variables and a batch to sums; means are over the global batch."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.objectives.advantages import clip_scores as clip_scores
    from hllm_jax.objectives.advantages import gae as gae
    from hllm_jax.objectives.advantages import token_rewards as token_rewards
    from hllm_jax.objectives.advantages import truncation_policy as truncation_policy
    from hllm_jax.objectives.build import make_loss as make_loss
    from hllm_jax.objectives.distillation import chunked_distillation as chunked_distillation
    from hllm_jax.objectives.distillation import distill as distill
    from hllm_jax.objectives.distillation import distillation_sums as distillation_sums
    from hllm_jax.objectives.groups import best_of_group as best_of_group
    from hllm_jax.objectives.groups import degenerate_groups as degenerate_groups
    from hllm_jax.objectives.groups import group_advantages as group_advantages
    from hllm_jax.objectives.groups import leave_one_out as leave_one_out
    from hllm_jax.objectives.kl import adaptive_kl as adaptive_kl
    from hllm_jax.objectives.kl import fixed_kl as fixed_kl
    from hllm_jax.objectives.kl import kl_divergence as kl_divergence
    from hllm_jax.objectives.kl import kl_estimate as kl_estimate
    from hllm_jax.objectives.language_model import causal_lm as causal_lm
    from hllm_jax.objectives.language_model import cross_entropy as cross_entropy
    from hllm_jax.objectives.language_model import token_sums as token_sums
    from hllm_jax.objectives.log_likelihood import chunked_likelihood as chunked_likelihood
    from hllm_jax.objectives.log_likelihood import likelihood as likelihood
    from hllm_jax.objectives.masked import masked_lm as masked_lm
    from hllm_jax.objectives.masks import at_last as at_last
    from hllm_jax.objectives.masks import whiten as whiten
    from hllm_jax.objectives.pairs import pair_scores as pair_scores
    from hllm_jax.objectives.pairs import pairwise_reward as pairwise_reward
    from hllm_jax.objectives.policy import grpo_sums as grpo_sums
    from hllm_jax.objectives.policy import ppo_policy_sums as ppo_policy_sums
    from hllm_jax.objectives.policy import ppo_sums as ppo_sums
    from hllm_jax.objectives.policy import rloo_sums as rloo_sums
    from hllm_jax.objectives.policy import value_sums as value_sums
    from hllm_jax.objectives.preference import Pair as Pair
    from hllm_jax.objectives.preference import answers as answers
    from hllm_jax.objectives.preference import dpo_sums as dpo_sums
    from hllm_jax.objectives.preference import ipo_sums as ipo_sums
    from hllm_jax.objectives.preference import kto_baseline as kto_baseline
    from hllm_jax.objectives.preference import kto_sums as kto_sums
    from hllm_jax.objectives.preference import orpo_sums as orpo_sums
    from hllm_jax.objectives.preference import simpo_sums as simpo_sums
    from hllm_jax.objectives.reward import calibration_error as calibration_error
    from hllm_jax.objectives.reward import longer_wins as longer_wins
    from hllm_jax.objectives.reward import margin_histogram as margin_histogram
    from hllm_jax.objectives.reward import pairwise_sums as pairwise_sums
    from hllm_jax.objectives.reward import ranking_sums as ranking_sums
    from hllm_jax.objectives.reward import reliability as reliability
    from hllm_jax.objectives.sequence_to_sequence import seq2seq as seq2seq
    from hllm_jax.objectives.sums import Loss as Loss
    from hllm_jax.objectives.sums import Sums as Sums
    from hllm_jax.objectives.sums import add as add
    from hllm_jax.objectives.sums import mean as mean
    from hllm_jax.objectives.tasks import make_task_loss as make_task_loss
