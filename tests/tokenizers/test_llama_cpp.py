"""llama.cpp itself reads what `to_gguf` writes, and gives the same ids.

Needs an environment of its own: `python -m venv .venv-llamacpp`, and in it `pip install xllamacpp gguf`.
"""

from __future__ import annotations

import json
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hllm_jax.tokenizers import Tokenizer, load_tokenizer, to_gguf
from tests.tokenizers import published

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = ROOT / ".venv-llamacpp" / "bin" / "python"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not LLAMA_CPP.exists(), reason="needs .venv-llamacpp with xllamacpp and gguf"),
]


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


def test_ids_are_llama_cpp_s(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    names = [n for n in published.names() if not n.startswith(("albert", "openai-gpt", "bert-plain", "glm4"))]
    tokenizers = {n: load_tokenizer(published.read(n).write(tmp_path / n)) for n in names}
    tokenizers["own"] = trained["bpe"]
    texts = published.read("gpt2").texts
    asked: dict[str, list[str]] = {}
    questions = []
    for name, tokenizer in tokenizers.items():
        differs = next((rule for start, rule in EXCEPT.items() if name.startswith(start)), lambda _: False)
        asked[name] = [text for text in texts if not differs(text)]
        metadata = {key: np.asarray(value).tolist() for key, value in to_gguf(tokenizer).items()}
        questions.append([metadata, asked[name]])
        assert len(asked[name]) > 0.8 * len(texts), name
    script = Path(__file__).with_name("ask_llama_cpp.py")
    done = subprocess.run(
        [str(LLAMA_CPP), str(script)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert len(answers) == len(tokenizers) >= 14
    for (name, tokenizer), (plain, special) in zip(tokenizers.items(), answers, strict=True):
        for text, their, framed in zip(asked[name], plain, special, strict=True):
            assert tokenizer.encode(text) == their, (name, text)
            assert tokenizer.encode_for_model(text)[0] == framed, (name, text)
