"""hllm_jax: the complete large-language-model system in JAX and Flax."""

from etils import epy

__version__ = "0.1.0"

with epy.lazy_api_imports(globals()):
    from hllm_jax.generation.load import load as load
