"""hllm_jax: the complete large-language-model system in JAX and Flax."""

__version__ = "0.1.0"
