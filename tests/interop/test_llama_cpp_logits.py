"""llama.cpp itself runs the GGUF files that we write, and says what we say.

Needs an environment of its own: `python -m venv .venv-llamacpp`, and in it `pip install xllamacpp gguf`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from hllm_jax.interop.gguf_export import save_gguf
from hllm_jax.models import DecoderConfig
from hllm_jax.nn import RopeScaling
from hllm_jax.testing.models import tiny_config, tiny_model
from hllm_jax.tokenizers import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = ROOT / ".venv-llamacpp" / "bin" / "python"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not LLAMA_CPP.exists(), reason="needs .venv-llamacpp with xllamacpp and gguf"),
]


def decoder(**changes: Any) -> DecoderConfig:
    sizes = {"vocab_size": 258, "embed": 64, "head_dim": 16, "mlp": 96, "max_length": 128}
    return tiny_config(**{**sizes, **changes})


_GPT2: dict[str, Any] = {
    "norm": "layer",
    "position": "learned",
    "gated": False,
    "activation": "gelu_tanh",
    "kv_heads": 4,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}

#: Page and spec -> largest difference; llama.cpp looks GELU up in a table of half floats.
SPECS: list[tuple[str, DecoderConfig, float]] = [
    ("llama", decoder(tie_embeddings=False), 1e-4),
    ("llama", decoder(rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_length=16)), 1e-4),
    ("llama", decoder(rope_scaling=RopeScaling(kind="linear", factor=4.0)), 1e-4),
    ("llama", decoder(qkv_bias=True, out_bias=True, mlp_bias=True), 1e-4),
    ("qwen2", decoder(qkv_bias=True), 1e-4),
    ("qwen3", decoder(qk_norm=True, head_dim=32, tie_embeddings=False), 1e-4),
    ("gpt2", decoder(**_GPT2), 5e-3),
]


def tokenizer(folder: Path) -> Any:
    """Bytes and one merge, without which llama.cpp loads no byte-level vocabulary."""
    vocab = {letter: i for i, letter in enumerate(ALPHABET)} | {"ab": 256}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "bos_token": "<end>"}))
    return load_tokenizer(folder)


def test_llama_cpp_gives_our_probabilities(tmp_path: Path) -> None:
    rng, bytes_ = np.random.default_rng(0), tokenizer(tmp_path / "tokenizer")
    rows = [rng.integers(0, 256, length).tolist() for length in (1, 5, 100)]
    asked, ours = [], []
    for number, (page, spec, _) in enumerate(SPECS):
        model, params = tiny_model(spec)
        path = tmp_path / f"{number}.gguf"
        save_gguf(path, spec, params, bytes_, kind="F32", family=page)
        asked.append([str(path), rows, ALPHABET.index("a")])
        apply = jax.jit(lambda p, t, model=model: jax.nn.log_softmax(model.apply({"params": p}, t)[0][0, -1]))
        ours.append([np.asarray(apply(params, np.array([row], np.int32))) for row in rows])
    done = subprocess.run(
        [str(LLAMA_CPP), str(Path(__file__).with_name("ask_llama_cpp_logits.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert len(answers) == len(SPECS)
    for (page, spec, tolerance), mine, theirs in zip(SPECS, ours, answers, strict=True):
        for row, said in zip(mine, theirs, strict=True):
            assert len(said) == 258
            found = np.array([said[str(i)] for i in range(258)])
            assert np.abs(row - found).max() <= tolerance, (page, spec)
