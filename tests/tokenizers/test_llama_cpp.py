"""llama.cpp itself reads what `to_gguf` writes, and gives the same ids."""

from __future__ import annotations

import json
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from hllm_jax.tokenizers import Tokenizer, from_gguf, load_tokenizer, to_gguf
from hllm_jax.tokenizers.cutting import CUTTINGS, Cutting
from tests.tokenizers import published

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = ROOT / ".venv-peers" / "bin" / "python"

pytestmark = pytest.mark.peers


def has(text: str, *categories: str) -> bool:
    return any(unicodedata.category(c)[: len(k)] == k for c in text for k in categories)


# Texts about which llama.cpp differs from the published tokenizer.
EXCEPT: dict[str, Callable[[str], bool]] = {
    # It has no longest word, and drops every kind of mark with the accents.
    "bert": lambda text: len(max(text.split(), key=len, default="")) > 50 or has(text, "Mc", "Me"),
    # It composes no characters.
    "qwen2": lambda text: unicodedata.normalize("NFC", text) != text,
    # It follows SentencePiece; `tokenizers` looks up whole graphemes, and cuts at U+0085 too.
    "t5": lambda text: has(text, "M") or "\x85" in text,
    # A bar in a text is a space to it.
    "own": lambda text: "\u2581" in text,
}


def ask(questions: list[Any]) -> list[Any]:
    """For each `[metadata, texts]` the ids of the texts, without and with special tokens."""
    script = Path(__file__).with_name("ask_llama_cpp.py")
    lists = [
        [{key: np.asarray(value).tolist() for key, value in metadata.items()}, texts]
        for metadata, texts in questions
    ]
    done = subprocess.run(
        [str(LLAMA_CPP), str(script)], input=json.dumps(lists), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert len(answers) == len(questions)
    return answers


def test_ids_are_llama_cpp_s(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    names = [n for n in published.names() if not n.startswith(("albert", "openai-gpt", "bert-plain", "glm4"))]
    made = {n: load_tokenizer(published.read(n).write(tmp_path / n)) for n in names}
    made["own"] = trained["bpe"]
    texts = published.read("gpt2").texts
    asked: dict[str, list[str]] = {}
    for name in made:
        differs = next((rule for start, rule in EXCEPT.items() if name.startswith(start)), lambda _: False)
        asked[name] = [text for text in texts if not differs(text)]
        assert len(asked[name]) > 0.8 * len(texts), name
    answers = ask([[to_gguf(tokenizer), asked[name]] for name, tokenizer in made.items()])
    assert len(answers) >= 14
    for (name, tokenizer), (plain, special) in zip(made.items(), answers, strict=True):
        for text, their, framed in zip(asked[name], plain, special, strict=True):
            assert tokenizer.encode(text) == their, (name, text)
            assert tokenizer.encode_for_model(text)[0] == framed, (name, text)


def test_every_way_of_cutting_is_llama_cpp_s() -> None:
    """With a vocabulary whose merges cross every border, so that each cut is seen in the ids."""
    texts = [unicodedata.normalize("NFC", text) for text in published.read("gpt2").texts]
    # What is a letter depends on the version of Unicode; and to llama.cpp's Tekken and o200k no mark belongs
    # to a letter, as it does to those who published them.
    texts = [text for text in texts if not has(text, "Cn", "M")]
    assert len(texts) > 120
    tail = "12345 1 22 333.4444 a1b22 's CamelCaseXMLHttp 've unmergedWord"
    texts += [f"{text} {tail}" for text in texts]
    trainee = tokenizers.Tokenizer(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trainee.train_from_iterator(
        [part for text in texts for part in text.split(" unmerged")[0].split("  ")], trainer
    )
    content = json.loads(trainee.to_str())["model"]
    # The last word is one that no merge makes.
    entries = [*sorted(content["vocab"], key=content["vocab"].__getitem__), "ĠunmergedWord"]
    ways: dict[Cutting, str] = {}
    for name, cutting in CUTTINGS.items():
        ways.setdefault(cutting, name)
    questions = [
        [
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": name,
                "tokenizer.ggml.tokens": entries,
                "tokenizer.ggml.token_type": [3] + [1] * (len(entries) - 1),
                "tokenizer.ggml.merges": [" ".join(pair) for pair in content["merges"]],
                "tokenizer.ggml.bos_token_id": 0,
                "tokenizer.ggml.eos_token_id": 0,
            },
            texts,
        ]
        for name in ways.values()
    ]
    for (metadata, _), (plain, _) in zip(questions, ask(questions), strict=True):
        for text, own, their in zip(texts, from_gguf(metadata).encode_batch(texts), plain, strict=True):
            assert own == their, (metadata["tokenizer.ggml.pre"], text)
    different = {json.dumps(from_gguf(metadata).encode_batch(texts)) for metadata, _ in questions}
    # GLM-4's is LLaMA-3's but for the begin of a text.
    assert len(different) == len(ways) - 1 == 8
