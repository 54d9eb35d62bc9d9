"""Where hllm_jax keeps what it downloads and prepares, and which paths it can write to."""

from __future__ import annotations

import os
import re
from pathlib import Path

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters or more: C:/ is a drive


def cache_dir() -> Path:
    """The cache folder: `$HLLM_CACHE`, or `~/.cache/hllm_jax`. Everything in it can be made again.

    Raises:
        ValueError: `$HLLM_CACHE` is no local path.
    """
    given = os.environ.get("HLLM_CACHE")
    if given and is_remote(given):
        raise ValueError(f"HLLM_CACHE={given}: {LOCAL_ONLY}")
    return Path(given or Path.home() / ".cache" / "hllm_jax").expanduser()


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a bucket (`gs://…`), also one that `pathlib` has shortened to `gs:/…`."""
    return REMOTE.match(os.fspath(path)) is not None


#: For errors: folders that are locked, appended to and renamed in, which buckets cannot do.
LOCAL_ONLY = (
    "must be a local path for now; use a local or mounted disk and copy the folder to the bucket afterwards "
    "(data can be read from gs://)"
)
