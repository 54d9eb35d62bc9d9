"""Learning from rewards: rollouts that are sampled, scored and learned from, iteration after iteration."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.rl.rollout import Rollout as Rollout
