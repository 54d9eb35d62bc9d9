"""Every test of this room has a cache of its own; only fetched packages are shared between runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hllm_jax.config import cache_dir


@pytest.fixture(scope="session")
def shared_cache() -> Path:
    """The user's own cache folder: what was fetched once is not fetched again."""
    return cache_dir()


@pytest.fixture(scope="session")
def built_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests of one session build TFDS sets, each once."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(autouse=True)
def own_cache(
    shared_cache: Path, built_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty cache folder that sees the shared packages and what this session has built."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (shared_cache / "packages").mkdir(parents=True, exist_ok=True)
    (cache / "packages").symlink_to(shared_cache / "packages", target_is_directory=True)
    (cache / "tfds").symlink_to(built_corpora, target_is_directory=True)
    monkeypatch.setenv("HLLM_CACHE", str(cache))
    return cache
