"""`TextEncoder`: vectors of tokens and of texts, from folders with and without a tokenizer and pooling."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hllm_jax
from hllm_jax.generation import LanguageModel, TextEncoder
from hllm_jax.generation.decode import TRACES
from hllm_jax.generation.load import load_language_model
from hllm_jax.generation.text_encoder import BATCH_TOKENS, batches
from hllm_jax.interop import save_hf
from hllm_jax.interop.hf import FolderError
from hllm_jax.interop.sentence_transformers import Pooling, read_pooling
from hllm_jax.models import EncoderConfig
from hllm_jax.testing.models import draw_params, tiny_config, tiny_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", "dog"]
WORDS += ["猫", "坐", "在", "垫", "子", "上"]
CONFIG = EncoderConfig(
    vocab_size=23, layers=2, embed=18, heads=3, kv_heads=3, mlp=28, max_length=40, pair_head=False
)
TEXTS = ["the cat sat on the mat", "", "猫坐在垫子上", "dogs", "The CAT " * 6, "the dog sat"]


def write(folder: Path, config: EncoderConfig = CONFIG, *, tokenizer: bool = True, **files: Any) -> Path:
    """A Hugging Face folder of a tiny BERT; `files` are JSON files beside it (`__` is a slash)."""
    save_hf(folder, config, draw_params(config, seed=1))
    if tokenizer:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
        told = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
    for name, content in files.items():
        path = folder / (name.replace("__", "/") + ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def chain(*kinds: str) -> list[dict[str, str]]:
    """`modules.json`."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    return [{"path": paths[kind], "type": f"sentence_transformers.models.{kind}"} for kind in kinds]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    loaded = hllm_jax.load(write(tmp_path_factory.mktemp("model")))
    assert isinstance(loaded, TextEncoder)
    return loaded


def by_hand(model: TextEncoder, text: str, pooling: Pooling) -> np.ndarray:
    """One text, computed from its hidden states in float64."""
    assert model.tokenizer is not None
    ids = model.tokenizer.encode_for_model(text)[0]
    hidden = np.asarray(model.hidden([ids]))[0].astype(np.float64)
    pooled = {
        "mean": hidden.mean(axis=0),
        "first": hidden[0],
        "max": hidden.max(axis=0),
        "mean_sqrt": hidden.sum(axis=0) / np.sqrt(len(ids)),
    }[pooling.kind]
    return pooled / np.linalg.norm(pooled) if pooling.normalize else pooled


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["mean", "first", "max", "mean_sqrt"])
def test_a_vector_is_what_the_hidden_states_pool_to(model: TextEncoder, kind: Any, normalize: bool) -> None:
    pooling = Pooling(kind=kind, normalize=normalize)
    other = TextEncoder(model.model, model.variables, model.tokenizer, pooling)
    found = other.embed(TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 18))
    for text, vector in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(vector, by_hand(model, text, pooling), atol=1e-5, err_msg=text)


def test_a_batch_is_its_texts_one_by_one_in_their_order(model: TextEncoder) -> None:
    texts = [" ".join(WORDS[5 + (7 * i) % 13] for i in range(n, 2 * n)) for n in (3, 30, 1, 17, 9, 25, 2, 11)]
    texts = [*texts, *TEXTS, *texts[::-1]]
    together = model.embed(texts)
    np.testing.assert_allclose(together, np.concatenate([model.embed(t) for t in texts]), atol=1e-5)
    np.testing.assert_allclose(together[:8], together[:-9:-1], atol=1e-5)


def test_a_second_call_compiles_nothing_and_no_text_gives_no_vector(model: TextEncoder) -> None:
    model.embed(TEXTS)
    before = TRACES["embed"]
    np.testing.assert_array_equal(model.embed(TEXTS), model.embed(list(reversed(TEXTS)))[::-1])
    assert model.embed([]).shape == (0, 18)
    assert TRACES["embed"] == before


def test_texts_that_are_too_long_are_cut_and_counted(
    model: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    short = TextEncoder(model.model, model.variables, model.tokenizer, Pooling(max_length=6))
    with caplog.at_level(logging.WARNING):
        found = short.embed(["the cat sat on", "the cat sat on the mat", "猫坐在垫子上"])
    assert "2 of 3 texts are longer than 6 tokens" in caplog.text
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[2], by_hand(model, "猫坐在垫", Pooling()), atol=1e-5)
    caplog.clear()
    assert np.isfinite(model.embed("the cat " * 100)).all()
    assert "1 of 1 texts are longer than 40 tokens" in caplog.text


def test_the_shapes_of_batches_are_few_and_every_text_is_in_one() -> None:
    lengths = np.random.default_rng(0).integers(2, 400, 3000).astype(np.int32)
    found = list(batches(lengths, 512))
    assert sorted(np.concatenate([chosen for chosen, _ in found])) == list(range(3000))
    for chosen, (rows, length) in found:
        assert len(chosen) <= rows
        assert lengths[chosen].max() <= length
        assert rows * length <= max(BATCH_TOKENS, length)
    assert all(len(chosen) == rows for chosen, (rows, _) in found[:-1])
    assert len({shape for _, shape in found}) <= 18
    assert [shape for _, shape in batches(np.array([7], np.int32), 512)] == [(1, 16)]
    assert [shape for _, shape in batches(np.array([40], np.int32), 40)] == [(1, 40)]


def test_what_stands_at_padding_does_not_count_and_types_do(model: TextEncoder) -> None:
    ids = [[2, 5, 6, 3], [2, 9, 3, 0]]
    keep = [[1, 1, 1, 1], [1, 1, 1, 0]]
    hidden = np.asarray(model.hidden(ids, keep))
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden[1, :3], np.asarray(model.hidden([[2, 9, 3]]))[0], atol=1e-5)
    second = np.asarray(model.hidden(ids, keep, token_types=[[0, 0, 1, 1], [0, 0, 0, 0]]))
    assert np.abs(second[0] - hidden[0]).max() > 1e-2
    np.testing.assert_array_equal(second[1, :3], hidden[1, :3])


def test_logits_are_those_of_the_masked_head(model: TextEncoder) -> None:
    logits = model.logits([[2, 4, 6, 3]])
    assert (logits.dtype, logits.shape) == (np.float32, (1, 4, 23))
    bare = dataclasses.replace(CONFIG, masked_head=False)
    module = bare.build(model.model.execution)
    params = {k: v for k, v in model.variables["params"].items() if not k.startswith("masked")}
    with pytest.raises(ValueError, match="this model has a pooler, but none of masked language modelling"):
        TextEncoder(module, {"params": params}, None).logits([[1]])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tokens": [[23]]}, "token 23 is outside the vocabulary"),
        ({"tokens": [[1] * 41]}, "longer than the model's max_length 40"),
        ({"tokens": [[1, 2]], "positions": [[0, 40]]}, "positions must run from 0 to max_length - 1 = 39"),
        ({"tokens": [[1, 2]], "token_types": [[0, 2]]}, "token_types must run from 0 to 1"),
        ({"tokens": [[1, 2]], "segment_ids": [[1]]}, "must have the shape of tokens"),
        ({"tokens": [1, 2]}, r"must be integers \[B, L\]"),
    ],
)
def test_what_jax_would_clamp_is_refused(model: TextEncoder, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model.hidden(**given)


def test_a_folder_without_a_tokenizer_says_what_tokens_are(tmp_path: Path, model: TextEncoder) -> None:
    bare = hllm_jax.load(write(tmp_path, tokenizer=False))
    assert isinstance(bare, TextEncoder)
    assert bare.tokenizer is None
    np.testing.assert_allclose(bare.hidden([[2, 5, 3]]), model.hidden([[2, 5, 3]]), atol=1e-6)
    with pytest.raises(ValueError, match="has no tokenizer: pass ids to hidden"):
        bare.embed(["cat"])


def test_pooling_is_read_from_the_files_of_sentence_transformers(tmp_path: Path) -> None:
    assert read_pooling(write(tmp_path / "none")) is None
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    old = write(
        tmp_path / "old",
        modules=chain("Transformer", "Pooling", "Normalize"),
        **{"1_Pooling__config": flags, "sentence_bert_config": {"max_seq_length": 9, "do_lower_case": True}},
    )
    assert read_pooling(old) == Pooling(kind="first", normalize=True, max_length=9, lowercase=True)
    loaded = hllm_jax.load(old)
    assert isinstance(loaded, TextEncoder)
    np.testing.assert_allclose(np.linalg.norm(loaded.embed(TEXTS), axis=1), 1.0, atol=1e-6)
    new = {"modules": chain("Transformer", "Pooling"), "1_Pooling__config": {"pooling_mode": "mean"}}
    assert read_pooling(write(tmp_path / "new", **new)) == Pooling()


@pytest.mark.parametrize(
    ("kinds", "flags", "says"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}, "a chain of .*Dense"),
        (("Transformer",), {}, "a chain of Transformer;"),
        (("Transformer", "Pooling"), {"pooling_mode_lasttoken": True}, "pooling_mode_lasttoken"),
        (("Transformer", "Pooling"), {}, r"pooling by \[\]"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "only one of",
        ),
    ],
)
def test_pooling_that_is_not_done_here_is_refused(
    kinds: tuple[str, ...], flags: dict[str, bool], says: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, modules=chain(*kinds), **{"1_Pooling__config": flags})
    with pytest.raises(FolderError, match=says):
        hllm_jax.load(folder)


def test_each_class_is_for_its_kind_of_model(tmp_path: Path, model: TextEncoder) -> None:
    with pytest.raises(ValueError, match="of the kind encoder, and only a decoder goes on with a text"):
        load_language_model(write(tmp_path))
    decoder, params = tiny_model(tiny_config())
    with pytest.raises(ValueError, match="a decoder embeds no text"):
        TextEncoder(decoder, {"params": params}, None)
    assert model.tokenizer is not None
    scorer, params = tiny_model(tiny_config(head="score"))
    with pytest.raises(ValueError, match="it is a reward model, which does not write"):
        LanguageModel(scorer, {"params": params}, None)
    with pytest.raises(ValueError, match="a encoder does not continue text"):
        LanguageModel(model.model, model.variables, model.tokenizer)
