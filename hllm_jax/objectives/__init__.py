"""What is minimised: pure functions from variables and a batch to sums; means are over the global batch."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.objectives.build import make_loss as make_loss
    from hllm_jax.objectives.language_model import causal_lm as causal_lm
    from hllm_jax.objectives.language_model import cross_entropy as cross_entropy
    from hllm_jax.objectives.language_model import token_sums as token_sums
    from hllm_jax.objectives.masked import masked_lm as masked_lm
    from hllm_jax.objectives.sequence_to_sequence import seq2seq as seq2seq
    from hllm_jax.objectives.sums import Loss as Loss
    from hllm_jax.objectives.sums import Sums as Sums
    from hllm_jax.objectives.sums import add as add
    from hllm_jax.objectives.sums import mean as mean
    from hllm_jax.objectives.tasks import make_task_loss as make_task_loss
