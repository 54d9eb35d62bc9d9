"""The published implementation on the same vocabularies: equal ids, equal conversations, equal masks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerConfig, from_gguf, load_tokenizer, train_tokenizer
from tests.tokenizers import published, real

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


FOLDERS = """
import json, sys
from transformers import AutoTokenizer
roles = ("bos", "eos", "pad", "cls", "sep", "mask")
def answers(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    def framed(*texts):
        said = tokenizer(*texts, return_token_type_ids=True)
        return [said["input_ids"], said["token_type_ids"]]
    return {
        "ids": [tokenizer.encode(text, add_special_tokens=False) for text in texts],
        "framed": [framed(text) for text in texts[:40]],
        "pairs": [framed(*pair) for pair in zip(texts[:39], texts[1:40])],
        "roles": {role: getattr(tokenizer, role + "_token_id") for role in roles},
        "sentinels": [tokenizer.convert_tokens_to_ids(f"<extra_id_{k}>") for k in range(100)]
        if "<extra_id_0>" in tokenizer.get_vocab() else [],
        "size": len(tokenizer),
    }
print(json.dumps([answers(folder, texts) for folder, texts in json.load(sys.stdin)]))
"""


def python(program: str, given: Any) -> Any:
    """What a program prints as JSON, run in the peers environment."""
    done = subprocess.run(
        [str(PEERS), "-c", program], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_our_folders_in_transformers(corpus: list[str], tmp_path: Path) -> None:
    """Each kind that is trained here, with all that it can have, and each that is read from others."""
    ours = [
        TokenizerConfig(kind="unigram", vocab_size=500, mask_token=True, sentinels=100),
        TokenizerConfig(kind="bpe", vocab_size=500, mask_token=True, sentinels=100),
        TokenizerConfig(kind="byte_bpe", vocab_size=500, mask_token=True, sentinels=100),
        TokenizerConfig(kind="wordpiece", vocab_size=400, sentinels=100),
        TokenizerConfig(kind="wordpiece", vocab_size=300, lowercase=False, alphabet_share=0.6),
    ]
    made = [train_tokenizer(corpus, config) for config in ours]
    names = published.names()
    made += [load_tokenizer(published.read(name).write(tmp_path / name)) for name in names]
    families = ("bert", "roberta", "albert", "t5", "openai-gpt", "gpt2", "qwen2", "llama", "glm4")
    folders: list[str] = []
    for tokenizer, name in zip(made, [*["llama"] * len(ours), *names], strict=True):
        folder = tmp_path / f"ours-{len(folders)}"
        tokenizer.save(folder)
        # Beside a model its family is named too, which must not bring the family's own class into play.
        family = next(family for family in families if name.startswith(family))
        (folder / "config.json").write_text(json.dumps({"model_type": family}))
        folders.append(str(folder))
    recorded = published.read(names[0]).texts
    hostile = [*texts()[:300], *recorded]
    for tokenizer, theirs in zip(made, python(FOLDERS, [[f, hostile] for f in folders]), strict=True):
        for text, own, their in zip(hostile, tokenizer.encode_batch(hostile), theirs["ids"], strict=True):
            assert own == their, (tokenizer, text)
        for text, their in zip(hostile, theirs["framed"], strict=False):
            assert list(map(list, tokenizer.encode_for_model(text))) == their, (tokenizer, text)
        for first, second, their in zip(hostile, hostile[1:], theirs["pairs"], strict=False):
            assert list(map(list, tokenizer.encode_for_model(first, second))) == their, (tokenizer, first)
        for role, their in theirs["roles"].items():
            assert getattr(tokenizer, f"{role}_id") == their, (tokenizer, role)
        assert list(tokenizer.sentinel_ids) == theirs["sentinels"]
        assert tokenizer.vocab_size == theirs["size"]
    assert len(made) == len(ours) + len(names) >= 24


def test_published_vocabularies_live(tmp_path: Path) -> None:
    """Vocabularies of published size, in the published classes and out of our folders."""
    folders = [real.minilm(tmp_path / "minilm")]
    if sys.version_info[:2] == (3, 11):
        folders.append(real.llama2(tmp_path / "llama2"))
    hostile = [*texts()[:300], *published.read("gpt2").texts]
    made = [load_tokenizer(folder) for folder in folders] * 2
    for k, tokenizer in enumerate(made[: len(folders)]):
        tokenizer.save(tmp_path / f"ours-{k}")
        folders.append(tmp_path / f"ours-{k}")
    program = FOLDERS.replace("AutoTokenizer.from_pretrained(folder)", "unpadded(folder)").replace(
        "def answers",
        "def unpadded(folder):\n    t = AutoTokenizer.from_pretrained(folder)\n"
        "    t.backend_tokenizer.no_padding(); t.backend_tokenizer.no_truncation(); return t\ndef answers",
    )
    theirs = python(program, [[str(folder), hostile] for folder in folders])
    for tokenizer, their in zip(made, theirs, strict=True):
        assert tokenizer.encode_batch(hostile) == their["ids"]
        assert [list(map(list, tokenizer.encode_for_model(text))) for text in hostile[:40]] == their["framed"]
        assert tokenizer.vocab_size == their["size"]


def test_published_classes_live(tmp_path: Path) -> None:
    """The recording made anew, from other texts."""
    script, path = ROOT / "scripts" / "fixtures" / "record_tokenizers.py", tmp_path / "live.zip"
    command = [str(PEERS), str(script), str(path), "--seed", "11", "--texts", "1500"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert published.names(path) == published.names()
    for name in published.names():
        case = published.read(name, path)
        assert len(case.texts) > 1500
        published.compare(load_tokenizer(case.write(tmp_path / name)), case)


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
