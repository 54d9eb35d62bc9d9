"""llama.cpp itself runs the GGUF files that we write, and says what we say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.interop.gguf_export import save_gguf
from hllm_jax.models import DecoderConfig
from hllm_jax.testing import documents
from hllm_jax.testing.models import tiny_config, tiny_model
from hllm_jax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
TOKENS = 12

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module", name="tokenizer")
def make_tokenizer() -> Tokenizer:
    """SentencePiece BPE, which llama.cpp knows."""
    return train_tokenizer(documents(400), TokenizerConfig(kind="bpe", vocab_size=400))


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma2": {
        "norm_placement": "sandwich",
        "attention_pattern": ("window", "full"),
        "window": 4096,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "embed_scale": 8.0,
        "activation": "gelu_tanh",
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_the_same(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    sizes = {"vocab_size": tokenizer.vocab_size, "embed": 64, "head_dim": 16, "mlp": 96, "max_length": 128}
    config = tiny_config(**sizes, **FAMILIES[family])
    model, params = tiny_model(config, seed=2)
    path = tmp_path / "model.gguf"
    save_gguf(path, config, params, tokenizer, kind="F32", family=family)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(10, config.vocab_size, length).tolist() for length in (3, 7, 12)]
    asked = json.dumps({"path": str(path), "prompts": prompts, "tokens": TOKENS})
    script = Path(__file__).with_name("ask_llama_cpp.py")
    done = subprocess.run([PEERS, script], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert [len(tokens) for tokens in said] == [TOKENS] * 3
    ours = [greedy(config, model, params, prompt, tokenizer) for prompt in prompts]
    agreed = sum(
        a == b for mine, theirs in zip(ours, said, strict=True) for a, b in zip(mine, theirs, strict=True)
    )
    # Its key/value cache holds 16 bits, so that near ties may fall either way.
    assert agreed >= 0.9 * 3 * TOKENS, (ours, said)


def greedy(
    config: DecoderConfig, model: Any, params: Any, prompt: list[int], tokenizer: Tokenizer
) -> list[int]:
    """The most probable continuation without the end of a text, the whole row computed each time."""
    apply = jax.jit(model.apply)
    row = np.zeros((1, len(prompt) + TOKENS), np.int32)
    row[0, : len(prompt)] = prompt
    for place in range(len(prompt), row.shape[1]):
        logits = np.array(apply({"params": params}, jnp.asarray(row))[0][0, place - 1])
        logits[list(tokenizer.stop_ids)] = -np.inf
        row[0, place] = int(logits.argmax())
    return row[0, len(prompt) :].tolist()
