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
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import hllm_jax
from hllm_jax.conversion import convert
from hllm_jax.generation import TextEncoder
from hllm_jax.interop.gguf_export import KINDS, Kind, save_gguf
from hllm_jax.interop.sentence_transformers import Kind as Pooled
from hllm_jax.interop.sentence_transformers import Pooling
from hllm_jax.models import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from hllm_jax.models.config import Execution
from hllm_jax.models.families import families
from hllm_jax.nn import Experts, RopeScaling
from hllm_jax.nn.mlp import ACTIVATIONS
from hllm_jax.testing.models import compiled, draw_params, tiny_config, tiny_model
from hllm_jax.tokenizers import Tokenizer, load_tokenizer
from hllm_jax.training.pretrained import load_pretrained
from tests.tokenizers import published

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = ROOT / ".venv-peers" / "bin" / "python"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
ROWS = [np.random.default_rng(0).integers(0, 256, length).tolist() for length in (1, 5, 100)]

pytestmark = pytest.mark.peers


def ask(questions: list[dict[str, Any]], script: str = "ask_llama_cpp.py") -> list[Any]:
    """See the head of the script."""
    done = subprocess.run(
        [str(LLAMA_CPP), str(Path(__file__).with_name(script))],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert len(answers) == len(questions)
    return answers


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
_GEMMA2: dict[str, Any] = {
    "norm_placement": "sandwich",
    "norm_eps": 1e-6,
    "attention_pattern": ("window", "full"),
    "window": 16,
    "attention_softcap": 50.0,
    "logit_softcap": 30.0,
    "embed_scale": 8.0,
    "activation": "gelu_tanh",
}
_GLM: dict[str, Any] = {"rope_fraction": 0.5, "rope_pairing": "interleaved", "tie_embeddings": False}
_EXPERTS: dict[str, Any] = {"experts": Experts(count=4, per_token=2), "tie_embeddings": False}

#: Where numbers that differ in the last bit meet different steps of a table.
STEP = 1e-3


@pytest.fixture(autouse=True)
def gelu_as_in_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks GELU up in a table of half floats where |x| < 10 (ggml, `ggml_vec_gelu_f32`)."""

    def looked_up(x: jax.Array) -> jax.Array:
        found = jax.nn.gelu(x.astype(jnp.float16).astype(jnp.float32), approximate=True).astype(jnp.float16)
        return jnp.where(x <= -10, 0.0, jnp.where(x >= 10, x, found.astype(jnp.float32)))

    monkeypatch.setitem(ACTIVATIONS, "gelu_tanh", looked_up)


#: Page, spec and largest difference of a log-probability.
SPECS: list[tuple[str, DecoderConfig, float]] = [
    ("llama", decoder(tie_embeddings=False), 1e-4),
    ("llama", decoder(rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_length=16)), 1e-4),
    ("llama", decoder(rope_scaling=RopeScaling(kind="linear", factor=4.0)), 1e-4),
    ("llama", decoder(qkv_bias=True, out_bias=True, mlp_bias=True), 1e-4),
    ("mixtral", decoder(**_EXPERTS), 1e-4),
    ("qwen2", decoder(qkv_bias=True), 1e-4),
    ("qwen3", decoder(qk_norm=True, head_dim=32, tie_embeddings=False), 1e-4),
    ("gpt2", decoder(**_GPT2), STEP),
    ("gemma2", decoder(**_GEMMA2), STEP),
    # The 27B model, which llama.cpp knows by its depth, scales its scores otherwise: seen as 4 here.
    ("gemma2", decoder(**_GEMMA2, layers=46, head_dim=32, attention_scale=0.25), 50 * STEP),
    ("chatglm", decoder(**_GLM, qkv_bias=True), 1e-4),
    ("glm4", decoder(**_GLM, qkv_bias=True), 1e-4),
    ("glm4", decoder(**_GLM, norm_placement="sandwich"), 1e-4),
    ("glm4", decoder(**_GLM, norm_placement="sandwich", qkv_bias=True), 1e-4),
]


@pytest.fixture(scope="module", name="bytes_")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes and one merge, without which llama.cpp loads no byte-level vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = {letter: i for i, letter in enumerate(ALPHABET)} | {"ab": 256}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "bos_token": "<end>"}))
    return load_tokenizer(folder)


def log_probabilities(model: Any, params: Any) -> list[np.ndarray]:
    """Float `[258]` after each of `ROWS`, which are filled up behind: nothing looks ahead."""
    tokens = np.zeros((len(ROWS), max(map(len, ROWS))), np.int32)
    for number, row in enumerate(ROWS):
        tokens[number, : len(row)] = row
    logits = compiled(model)({"params": params}, tokens)[0]
    return [np.asarray(jax.nn.log_softmax(logits[i, len(row) - 1])) for i, row in enumerate(ROWS)]


def difference(ours: list[np.ndarray], theirs: list[dict[str, float]]) -> float:
    """The largest of all rows and ids."""
    assert [len(said) for said in theirs] == [258] * len(ours)
    rows = zip(ours, theirs, strict=True)
    return max(float(np.abs(row - [said[str(i)] for i in range(258)]).max()) for row, said in rows)


def test_llama_cpp_gives_our_probabilities(bytes_: Tokenizer, tmp_path: Path) -> None:
    asked, ours = [], []
    for number, (page, spec, _) in enumerate(SPECS):
        model, params = tiny_model(spec, scan_layers=spec.layers > 2)
        path = tmp_path / f"{number}.gguf"
        save_gguf(path, spec, params, bytes_, kind="F32", family=page)
        asked.append({"path": str(path), "rows": ROWS, "letter": ALPHABET.index("a")})
        ours.append(log_probabilities(model, params))
    for (page, spec, tolerance), mine, theirs in zip(SPECS, ours, ask(asked), strict=True):
        assert difference(mine, theirs) <= tolerance, (page, spec)


#: Storage type and largest difference from the rounded weights: llama.cpp rounds what they meet too, to the
#: same 16 bits or to blocks of 8. What rounding to 4 bits costs is more than 5.
STORED: dict[Kind, float] = {**dict.fromkeys(KINDS, 0.5), "F32": 1e-4, "F16": 0.02, "BF16": 0.1}


def test_llama_cpp_reads_every_storage_type(bytes_: Tokenizer, tmp_path: Path) -> None:
    spec = decoder(tie_embeddings=False)
    _, params = tiny_model(spec)
    asked, ours = [], []
    for kind in STORED:
        path = tmp_path / f"{kind}.gguf"
        save_gguf(path, spec, params, bytes_, kind=kind)
        asked.append({"path": str(path), "rows": ROWS, "letter": ALPHABET.index("a")})
        read, rounded, _ = load_pretrained(path)
        ours.append(log_probabilities(read.build(Execution(dtype="float32")), rounded))
    for (kind, tolerance), mine, theirs in zip(STORED.items(), ours, ask(asked), strict=True):
        assert difference(mine, theirs) <= tolerance, kind


_V1_1: dict[str, Any] = {
    "activation": "gelu_tanh",
    "gated": True,
    "tie_embeddings": False,
    "scale_logits": False,
}


def test_llama_cpp_gives_our_probabilities_of_t5(tmp_path: Path) -> None:
    """Of both versions, with distances of more than one bucket; it does not scale what 1.0's head says."""
    tokenizer = load_tokenizer(published.read("t5").write(tmp_path / "tokenizer"))
    sizes: dict[str, Any] = {"layers": 2, "embed": 64, "heads": 4, "kv_heads": 4, "head_dim": 16, "mlp": 96}
    sizes |= {"vocab_size": tokenizer.vocab_size, "max_length": 128}
    # How many steps of GELU's table are met differently depends on the processor; 9 were seen.
    gated = 20 * STEP
    cases = [({}, 64**0.5, 1e-4), (_V1_1, 1.0, gated), (_V1_1 | {"decoder_layers": 1}, 1.0, gated)]
    rng = np.random.default_rng(0)
    read, written = [*rng.integers(3, 800, 90).tolist(), 1], [0, *rng.integers(3, 800, 70).tolist()]
    asked, ours = [], []
    for number, (changes, scale, _) in enumerate(cases):
        spec = EncoderDecoderConfig(**sizes | changes)
        params, path = draw_params(spec), tmp_path / f"{number}.gguf"
        save_gguf(path, spec, params, tokenizer, kind="F32", family="t5")
        asked.append({"path": str(path), "read": read, "written": written, "vocabulary": spec.vocab_size})
        model = spec.build(Execution(dtype="float32"))
        rows = np.array([read], np.int32), np.array([written], np.int32)
        logits = compiled(model)({"params": params}, *rows)[0][0, -1]
        ours.append(np.asarray(jax.nn.log_softmax(scale * logits)))
    answers = ask(asked, "ask_llama_cpp_library.py")
    for (changes, _, tolerance), mine, theirs in zip(cases, ours, answers, strict=True):
        assert np.abs(mine - theirs).max() <= tolerance, changes


TEXTS = [
    "A cat sits on the mat.",
    "The weather is lovely today, isn't it? Café naïve.",
    "今天天气很好，我们去公园吧。",
    "机器学习与 JAX",
    "def f(x): return x + 1",
]


def test_every_page_that_writes_gguf_is_here() -> None:
    writing = {name for name, page in families().items() if getattr(page, "GGUF_ARCHITECTURES", ())}
    assert writing == {page for page, _, _ in SPECS} | {"bert", "t5"}


def cosines(ours: np.ndarray, theirs: list[list[float]]) -> np.ndarray:
    """Of each vector and its counterpart."""
    found = np.array(theirs)
    assert found.shape == ours.shape
    return np.sum(ours * found, -1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(found, axis=-1)


def wordpiece(folder: Path) -> Tokenizer:
    """BERT's, with every character of `TEXTS` at the begin of a word and inside."""
    letters = sorted(set("".join(TEXTS).lower()) - {" "})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*entries, "weather", "##ly"]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return load_tokenizer(folder)


def test_llama_cpp_gives_our_vectors_of_texts(tmp_path: Path) -> None:
    """Of English and Chinese, pooled both ways, with any number of kinds of tokens."""
    tokenizer = wordpiece(tmp_path / "tokenizer")
    assert tokenizer.unk_id not in [i for row in tokenizer.encode_batch(TEXTS[2:]) for i in row]
    cases: list[tuple[Pooled, int]] = [("mean", 2), ("first", 2), ("mean", 3)]
    asked, ours = [], []
    for number, (kind, token_types) in enumerate(cases):
        sizes: dict[str, Any] = {"layers": 2, "embed": 64, "heads": 4, "kv_heads": 4, "mlp": 96}
        sizes |= {"vocab_size": tokenizer.vocab_size, "max_length": 128, "token_types": token_types}
        spec = EncoderConfig(masked_head=False, pair_head=False, **sizes)
        params, pooling = draw_params(spec), Pooling(kind, normalize=True)
        path = tmp_path / f"{number}.gguf"
        save_gguf(path, spec, params, tokenizer, kind="F32", pooling=pooling)
        asked.append({"path": str(path), "embed": TEXTS})
        model = spec.build(Execution(dtype="float32"))
        ours.append(TextEncoder(model, {"params": params}, tokenizer, pooling).embed(TEXTS))
        again = hllm_jax.load(path)
        assert isinstance(again, TextEncoder)
        np.testing.assert_array_equal(again.embed(TEXTS), ours[-1])
    assert cosines(ours[0], ours[1].tolist()).max() < 0.99  # how they are pooled is seen
    for case, mine, theirs in zip(cases, ours, ask(asked), strict=True):
        assert cosines(mine, theirs).min() > 0.99999, case


@pytest.mark.slow
def test_llama_cpp_gives_minilm_s_vectors(tmp_path: Path) -> None:
    convert("all-minilm-l6-v2", tmp_path / "minilm.gguf", dtype="F32")
    model = hllm_jax.load("all-minilm-l6-v2")
    assert isinstance(model, TextEncoder)
    (theirs,) = ask([{"path": str(tmp_path / "minilm.gguf"), "embed": TEXTS}])
    assert cosines(model.embed(TEXTS), theirs).min() > 0.99999
