"""Scores of a model and of the baselines that it has to beat, on the same held-out text."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.evals.compression import XzScore as XzScore
    from hllm_jax.evals.compression import xz as xz
    from hllm_jax.evals.heldout import evaluate as evaluate
    from hllm_jax.evals.kneser_ney import NGramScore as NGramScore
    from hllm_jax.evals.kneser_ney import bits_per_order as bits_per_order
    from hllm_jax.evals.kneser_ney import ngram as ngram
    from hllm_jax.evals.pairs import make_pair_evaluation as make_pair_evaluation
    from hllm_jax.evals.tasks import make_task_evaluation as make_task_evaluation
