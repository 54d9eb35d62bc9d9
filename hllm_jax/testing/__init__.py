"""Public doubles for tests: tiny models, a byte tokenizer, tiny corpora, a toy training run."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.testing.corpora import conversations as conversations
    from hllm_jax.testing.corpora import documents as documents
    from hllm_jax.testing.corpora import write_conversations as write_conversations
    from hllm_jax.testing.corpora import write_documents as write_documents
    from hllm_jax.testing.corpora import write_jsonl as write_jsonl
    from hllm_jax.testing.models import random_tokens as random_tokens
    from hllm_jax.testing.models import tiny_config as tiny_config
    from hllm_jax.testing.models import tiny_model as tiny_model
    from hllm_jax.testing.tokenizer import ByteTokenizer as ByteTokenizer
