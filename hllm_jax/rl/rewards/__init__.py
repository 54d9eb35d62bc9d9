"""Rewards: what an answer is worth, as a reward model, a Python function or a verifier says."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.rl.rewards.config import RewardConfig as RewardConfig
    from hllm_jax.rl.rewards.errors import RewardError as RewardError
    from hllm_jax.rl.rewards.reward import Reward as Reward
