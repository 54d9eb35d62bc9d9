"""Data: records of any usual form become tokenized, packed, reproducible batches."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.data import corpora as corpora
    from hllm_jax.data.batch import LMBatch as LMBatch
    from hllm_jax.data.batch import PairBatch as PairBatch
    from hllm_jax.data.batches import Batches as Batches
    from hllm_jax.data.config import DataConfig as DataConfig
    from hllm_jax.data.config import SourceConfig as SourceConfig
    from hllm_jax.data.errors import DataError as DataError
    from hllm_jax.data.inspection import inspect as inspect
    from hllm_jax.data.loading import loader as loader
    from hllm_jax.data.objective import ObjectiveConfig as ObjectiveConfig
    from hllm_jax.data.preference_config import PairDataConfig as PairDataConfig
    from hllm_jax.data.preparation import TokenizedData as TokenizedData
    from hllm_jax.data.preparation import prepare as prepare
    from hllm_jax.data.prompts import PromptConfig as PromptConfig
    from hllm_jax.data.sources import texts as texts
    from hllm_jax.data.task import TaskDataConfig as TaskDataConfig
    from hllm_jax.data.vocabulary import tokenizer_for as tokenizer_for
