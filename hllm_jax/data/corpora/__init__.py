"""Registered corpora: real text and conversations that arrive through the package registries."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.data.corpora.registry import Corpus as Corpus
    from hllm_jax.data.corpora.registry import corpora_table as table  # noqa: F401
    from hllm_jax.data.corpora.registry import find_corpus as find  # noqa: F401
    from hllm_jax.data.corpora.registry import list_corpora as list  # noqa: F401
    from hllm_jax.data.corpora.registry import prepare_corpus as prepare  # noqa: F401
