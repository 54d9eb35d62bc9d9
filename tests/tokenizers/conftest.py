"""One small bilingual corpus, and a tokenizer of each kind trained on it."""

from __future__ import annotations

import random

import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer

WORDS = (
    "the king said to his queen that winter would come before harvest and every tower should hold grain",
    "for reading writing counting walking talking returning understanding",
)
PHRASES = (
    "画蛇添足，比喻做事多此一举。",
    "守株待兔：不知变通！",
    "一心一意地学习；",
    "春风化雨",
    "千里之行，始于足下。",
)
CODE = (
    "def add(left, right):\n\tif left == 0:\n\t    return right  # 12.5%\n\treturn add(left - 1, right + 1)\n"
)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """English, Chinese and code, the same every time."""
    chance = random.Random(0)
    syllables = ("ka", "lo", "mi", "ren", "stor", "ving", "pel", "dra", "sho", "tun")
    words = " ".join(WORDS).split() + ["".join(chance.choices(syllables, k=3)) for _ in range(150)]
    documents = [CODE] * 5
    for _ in range(150):
        lines = [" ".join(chance.choices(words, k=9)).capitalize() + ".\n" for _ in range(3)]
        documents.append("".join(lines) + "".join(chance.choices(PHRASES, k=4)) + "\n")
    return documents


@pytest.fixture(scope="session")
def trained(corpus: list[str]) -> dict[str, Tokenizer]:
    """Kind to tokenizer."""
    configs = [TokenizerConfig(kind=kind, vocab_size=480) for kind in ("unigram", "bpe", "byte_bpe")]
    return {config.kind: train_tokenizer(corpus, config) for config in configs}


@pytest.fixture(params=["unigram", "bpe", "byte_bpe"])
def tokenizer(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    """Each kind in turn."""
    return trained[request.param]
