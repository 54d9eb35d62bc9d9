"""YAML and dotted overrides become frozen dataclasses, or one error that names everything that is wrong."""

from .declare import Invalid, config
from .paths import cache_dir

__all__ = ["Invalid", "cache_dir", "config"]
