"""YAML and dotted overrides become frozen dataclasses, or one error that names everything that is wrong."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.config.convert import ABSENT as ABSENT
    from hllm_jax.config.convert import diff as diff
    from hllm_jax.config.convert import to_dict as to_dict
    from hllm_jax.config.convert import to_yaml as to_yaml
    from hllm_jax.config.declare import Invalid as Invalid
    from hllm_jax.config.declare import config as config
    from hllm_jax.config.document import Document as Document
    from hllm_jax.config.document import read_document as read_document
    from hllm_jax.config.load import load_config as load_config
    from hllm_jax.config.paths import LOCAL_ONLY as LOCAL_ONLY
    from hllm_jax.config.paths import cache_dir as cache_dir
    from hllm_jax.config.paths import is_remote as is_remote
    from hllm_jax.config.problems import ConfigError as ConfigError
    from hllm_jax.config.problems import Problem as Problem
