"""The published implementation on the same vocabularies: equal ids, equal conversations, equal masks."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hllm_jax.tokenizers import Tokenizer, from_gguf

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEERS.exists(), reason="needs the peers environment: `make peers`"),
]

PROGRAM = """
import json, sys
from transformers import AutoTokenizer
folder, file, texts, talks = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder, **({"gguf_file": file} if file else {}))
if file:
    # transformers reads every GGUF byte-level vocabulary with GPT-2's rules; this model was trained with
    # digits set apart first, which shows where blanks stand before a digit.
    from tokenizers import pre_tokenizers as rules
    tokenizer.backend_tokenizer.pre_tokenizer = rules.Sequence(
        [rules.Digits(individual_digits=True), rules.ByteLevel(add_prefix_space=False)]
    )
marked = bool(tokenizer.chat_template) and "generation %" in tokenizer.chat_template
print(json.dumps({
    "ids": [tokenizer.encode(text, add_special_tokens=False) for text in texts],
    "decoded": [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) for text in texts],
    "talks": [
        dict(tokenizer.apply_chat_template(
            talk, tools=tools, add_generation_prompt=serving,
            return_dict=True, return_assistant_tokens_mask=marked,
        )) for talk, tools, serving in talks
    ],
    "named": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
}))
"""

TEXTS = [
    "Hello world, it's 12,345.67 o'clock",
    "a  1 b   22  \n\n  3",
    "def f(x):\n\treturn {'a': 1.5e-3}  # ok\n\n\n",
    "你好，世界！（全角）　１２３",
    "😀👩‍👩‍👧‍👦 é e\u0301 \u200d \0 \ufdd0 \uffff",
    "Ünïcödé straße ﬁ ß 한국어 עברית",
    "   leading and trailing   ",
    "we'LL they'Re I'm",
]


def texts() -> list[str]:
    chance = random.Random(5)
    pool = "".join(TEXTS) + "  \n\n01 .,ab"
    return TEXTS + ["".join(chance.choices(pool, k=chance.randrange(1, 60))) for _ in range(500)]


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "你好 12 33"},
    {"role": "assistant", "content": "你好！"},
]
TALKS: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None, bool]] = [
    (TALK, None, False),
    (TALK[1:], None, False),
    (TALK[:4], None, True),
    (TALK[1:2], None, True),
]


def ask(folder: Path, file: str | None, talks: list[Any]) -> dict[str, Any]:
    done = subprocess.run(
        [str(PEERS), "-c", PROGRAM],
        input=json.dumps([str(folder), file, texts(), talks]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_smollm2() -> None:
    from gguf import GGUFReader

    from hllm_jax.interop.registry import fetch

    path = fetch("smollm2-135m-instruct")
    fields = GGUFReader(path).fields.items()
    tokenizer = from_gguf({key: field.contents() for key, field in fields if key.startswith("tokenizer.")})
    theirs = ask(path.parent, path.name, TALKS)
    assert theirs["named"] == [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.vocab_size == 49_152
    assert theirs["ids"] == tokenizer.encode_batch(texts())
    assert theirs["decoded"] == texts() == [tokenizer.decode(ids) for ids in theirs["ids"]]
    for (talk, tools, serving), their in zip(TALKS, theirs["talks"], strict=True):
        assert their["input_ids"] == tokenizer.render(talk, tools, serving)[0]


def test_our_byte_level_folder_in_transformers(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = trained["byte_bpe"]
    tokenizer.save(tmp_path)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"left": 1, "right": "<春>"}}}
    called = [
        TALK[1],
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "2"},
        TALK[4],
    ]
    talks = [*TALKS, (called, tools, False), (called[:3], tools, True)]
    theirs = ask(tmp_path, None, talks)
    assert theirs["named"] == [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert theirs["ids"] == tokenizer.encode_batch(texts())
    for (talk, tools, serving), their in zip(talks, theirs["talks"], strict=True):
        tokens, weights = tokenizer.render(talk, tools, serving)
        assert their["input_ids"] == tokens
        assert their["assistant_masks"] == weights
