"""Held-out scores against sums written out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.data import DataError
from hllm_jax.evals import evaluate
from hllm_jax.testing.models import tiny_config, tiny_model
from hllm_jax.testing.tokenizer import ByteTokenizer

TEXTS = ["To be, or not", "成语是词组", "x"]


@pytest.fixture(scope="module")
def model() -> Any:
    tokenizer = ByteTokenizer()
    # More embeddings than the tokenizer has ids, as padded vocabularies have.
    decoder, params = tiny_model(tiny_config(vocab_size=tokenizer.vocab_size + 3))
    return SimpleNamespace(
        config=decoder.config, model=decoder, variables={"params": params}, tokenizer=tokenizer
    )


def nll(model: Any, ids: list[int]) -> np.ndarray:
    logits, _ = model.model.apply(model.variables, jnp.asarray([ids[:-1]]))
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits[0]), jnp.asarray(ids[1:])[:, None], axis=-1)
    return -np.asarray(picked[:, 0], np.float64)


def test_documents(model: Any, tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    scores = evaluate(model, str(path))
    each = np.concatenate([nll(model, model.tokenizer.encode_document(text)) for text in TEXTS])
    size = sum(len(text.encode()) for text in TEXTS)
    assert scores["records"] == len(TEXTS)
    assert scores["bytes"] == size
    assert scores["tokens"] == len(each) == size + len(TEXTS)  # ends of documents are predicted too
    assert scores["loss"] == pytest.approx(each.mean(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(each.mean()), rel=1e-4)
    assert scores["bits_per_byte"] == pytest.approx(each.sum() / math.log(2) / size, rel=1e-5)


def test_of_a_conversation_only_the_assistant_counts(model: Any, tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "你好"}]
    path.write_text(json.dumps({"messages": messages}) + "\n", "utf-8")
    scores = evaluate(model, str(path))
    ids, weights = model.tokenizer.render(messages)
    chosen = nll(model, ids)[np.asarray(weights[1:]) > 0]
    assert scores["tokens"] == len(chosen)
    assert scores["bytes"] == len("你好".encode())
    assert scores["loss"] == pytest.approx(chosen.mean(), rel=1e-5)


def test_a_document_longer_than_the_context_loses_no_token(model: Any, tmp_path: Path):
    path = tmp_path / "long.txt"
    path.write_text("abcdefgh" * 40, "utf-8")
    assert evaluate(model, str(path))["tokens"] == 321


def test_limit_takes_the_first_records(model: Any, tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    assert evaluate(model, str(path), limit=1)["bytes"] == len(TEXTS[0])


def test_data_that_is_not_there(model: Any, tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        evaluate(model, str(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match="shakespeare"):
        evaluate(model, "shakespear")
