"""Learning from rewards: rollouts that are sampled, scored and learned from, iteration after iteration."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.rl.config import GRPOConfig as GRPOConfig
    from hllm_jax.rl.config import RolloutConfig as RolloutConfig
    from hllm_jax.rl.config import check_rl_sections as check_rl_sections
    from hllm_jax.rl.dpo import Preferences as Preferences
    from hllm_jax.rl.dpo_config import DPOConfig as DPOConfig
    from hllm_jax.rl.grpo import make_grpo as make_grpo
    from hllm_jax.rl.iteration import Iteration as Iteration
    from hllm_jax.rl.iteration import KLLimitError as KLLimitError
    from hllm_jax.rl.ppo import first_control as first_control
    from hllm_jax.rl.ppo import make_adapt as make_adapt
    from hllm_jax.rl.ppo import make_experience as make_experience
    from hllm_jax.rl.ppo import make_loss as make_loss
    from hllm_jax.rl.ppo import reward_scores as reward_scores
    from hllm_jax.rl.ppo import state_values as state_values
    from hllm_jax.rl.ppo import to_learn as to_learn
    from hllm_jax.rl.ppo_config import KLConfig as KLConfig
    from hllm_jax.rl.ppo_config import PPOConfig as PPOConfig
    from hllm_jax.rl.referenced import with_reference as with_reference
    from hllm_jax.rl.reward_model import open_reward_model as open_reward_model
    from hllm_jax.rl.rewarding import DeviceReward as DeviceReward
    from hllm_jax.rl.rewarding import HostReward as HostReward
    from hllm_jax.rl.rewarding import record_in as record_in
    from hllm_jax.rl.roles import Roles as Roles
    from hllm_jax.rl.roles import begin_roles as begin_roles
    from hllm_jax.rl.roles import make_roles as make_roles
    from hllm_jax.rl.roles import policy_of as policy_of
    from hllm_jax.rl.rollout import Rollout as Rollout
    from hllm_jax.rl.rollout import answer_likelihood as answer_likelihood
    from hllm_jax.rl.rollout import sample_rollout as sample_rollout
    from hllm_jax.rl.table import RolloutTable as RolloutTable
