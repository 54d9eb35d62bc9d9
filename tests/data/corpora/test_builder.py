"""Two processes that prepare the same corpus at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hllm_jax.data.corpora import builder as module
from hllm_jax.data.corpora.builder import CorpusBuilder, built
from hllm_jax.data.corpora.registry import find_corpus


def test_who_comes_second_takes_what_the_first_one_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    prepare, corpus, calls = CorpusBuilder.download_and_prepare, find_corpus("chatterbot-en"), []

    def raced(self: CorpusBuilder, *given: Any, **options: Any) -> None:
        calls.append(self)
        if len(calls) == 1:
            prepare(CorpusBuilder(corpus, tmp_path / "tfds"))
            raise FileExistsError(f"Cannot rename incomplete.X. Destination {self.data_dir} already exists.")
        prepare(self, *given, **options)

    monkeypatch.setattr(CorpusBuilder, "download_and_prepare", raced)
    assert built(corpus).info.splits["train"].num_examples == corpus.train
    assert len(calls) == 2
