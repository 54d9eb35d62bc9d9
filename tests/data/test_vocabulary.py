"""The run's tokenizer: trained once on the train split, found again, or loaded from its folder."""

from __future__ import annotations

import pytest

from hllm_jax.data import DataConfig, DataError, SourceConfig, tokenizer_for
from hllm_jax.testing.corpora import write_documents, write_jsonl
from hllm_jax.tokenizers import TokenizerConfig


def section(path, **settings):
    return DataConfig(sources=(SourceConfig(path=str(path), **settings),), holdout=0.1)


def test_trained_once_and_found_again(tmp_path, own_cache):
    data = section(write_documents(tmp_path / "a.jsonl", 300))
    config = TokenizerConfig(kind="byte_bpe", vocab_size=300)
    first = tokenizer_for(config, data)
    (folder,) = (own_cache / "tokenizers").iterdir()
    made = folder.stat().st_mtime_ns
    assert tokenizer_for(config, data).fingerprint == first.fingerprint
    assert tokenizer_for(TokenizerConfig(path=str(folder)), data).fingerprint == first.fingerprint
    assert folder.stat().st_mtime_ns == made
    other = tokenizer_for(TokenizerConfig(kind="byte_bpe", vocab_size=290), data)
    assert other.vocab_size != first.vocab_size
    text = "To be 学而 🙂"
    assert first.decode(first.encode(text)) == text


def test_no_usable_record_leaves_no_tokenizer(tmp_path, own_cache):
    data = section(write_jsonl(tmp_path / "a.jsonl", [{"body": "x"}] * 3))
    with pytest.raises(DataError, match="'body'"):
        tokenizer_for(TokenizerConfig(kind="byte_bpe", vocab_size=300), data)
    assert list((own_cache / "tokenizers").iterdir()) == []
