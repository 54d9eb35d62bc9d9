"""Where hllm_jax keeps what it downloads and prepares."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: `$HLLM_CACHE`, or `~/.cache/hllm_jax`. Everything in it can be made again."""
    return Path(os.environ.get("HLLM_CACHE") or Path.home() / ".cache" / "hllm_jax").expanduser()
