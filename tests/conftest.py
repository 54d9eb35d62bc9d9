"""Every test sees eight CPU devices, refuses silent rank promotion, and keeps what it prepares to itself.

This runs before jax is imported, in pytest-xdist's controller and (with the controller's environment) in its
workers; processes that a test starts inherit the same settings.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

PRETEND = "--xla_force_host_platform_device_count=8"

if PRETEND not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {PRETEND}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Compiled programs are kept from one test run to the next; what is prepared from data is not, because a stale
# cache would hide a mistake. Downloads are pinned by hash, so they are shared with the user's cache.
USER_CACHE = Path(os.environ.get("HLLM_CACHE") or Path.home() / ".cache" / "hllm_jax")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(USER_CACHE / "test-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def pytest_configure(config: pytest.Config) -> None:
    """Point HLLM_CACHE to a folder of this test run, shared by its workers."""
    if hasattr(config, "workerinput"):
        return
    folder = Path(tempfile.mkdtemp(prefix="hllm-test-cache-"))
    downloads = USER_CACHE / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    (folder / "packages").symlink_to(downloads, target_is_directory=True)
    os.environ["HLLM_CACHE"] = str(folder)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_finish() -> None:
    """What importing made stays: the collector need not walk it whenever a trace has made many objects."""
    gc.collect()
    gc.freeze()
