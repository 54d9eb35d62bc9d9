"""Which paths can be written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hllm_jax.config import cache_dir, is_remote


@pytest.mark.parametrize("path", ["gs://bucket/x", "gs:/bucket/x", "s3://b", "hf://datasets/x"])
def test_buckets(path: str) -> None:
    assert is_remote(path)
    assert is_remote(Path(path))


@pytest.mark.parametrize("path", ["runs/x", "/runs/x", "~/runs", "C:/runs", "a:b", "运行/gs://x", ""])
def test_disks(path: str) -> None:
    assert not is_remote(path)


def test_the_cache_is_on_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HLLM_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("HLLM_CACHE", "gs://bucket/cache")
    with pytest.raises(ValueError, match=r"HLLM_CACHE=gs://bucket/cache: must be a local path for now"):
        cache_dir()
