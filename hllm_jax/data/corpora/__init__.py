"""Registered corpora: real text and conversations that arrive through the package registries."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.data.corpora.registry import Corpus as Corpus
    from hllm_jax.data.corpora.registry import find as find
    from hllm_jax.data.corpora.registry import list as list
    from hllm_jax.data.corpora.registry import prepare as prepare
    from hllm_jax.data.corpora.registry import table as table
