"""What files of BERT and its descendants hold in the wild: other heads, old names, buffers, copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.interop import read_config, read_model, write_safetensors
from hllm_jax.interop.models import UnreadableModel, read_params
from hllm_jax.models.families import albert, bert, families, roberta
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Arrays, TensorsError
from tests.models.families.contract import Case, recorded

CASES = {repr(case): case for case in recorded()}


def write(case: Case, folder: Path, weights: dict[str, np.ndarray], **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**case.config, **config}))
    write_safetensors(folder / "model.safetensors", weights.items())
    return folder


def same(found: Any, wanted: Any) -> None:
    ours, theirs = flatten_dict(found), flatten_dict(wanted)
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg="/".join(path))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_the_heads_of_a_file_are_those_whose_tensors_it_holds(family: str, tmp_path: Path) -> None:
    """bert-base-uncased names BertForMaskedLM and holds the pooler and the head for pairs too."""
    case = CASES[f"{family}-pretraining"]
    assert {case.spec.masked_head, case.spec.pooler, case.spec.pair_head} == {True}
    masked = CASES[f"{family}-masked"].config["architectures"]
    read = read_model(write(case, tmp_path, case.weights, architectures=masked))
    assert read.config == case.spec
    same(read.params, case.params())


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_a_body_without_prefix_or_pooler_is_read_as_that(family: str, tmp_path: Path) -> None:
    case = CASES[f"{family}-bare"]
    kept = {name: tensor for name, tensor in case.weights.items() if "pooler" not in name}
    assert len(kept) == len(case.weights) - 2
    assert not any(name.startswith(family) for name in kept)
    read = read_model(write(case, tmp_path, kept))
    assert not read.config.pooler
    assert read.config.parameters() == sum(tensor.size for tensor in kept.values())
    prefixed = {f"{family}.{name}": tensor for name, tensor in kept.items()}
    same(read_model(write(case, tmp_path, prefixed)).params, read.params)


def test_old_names_of_norms_and_buffers_of_positions_are_understood(tmp_path: Path) -> None:
    case = CASES["bert-pretraining"]
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old: dict[str, np.ndarray] = {}
    for name, tensor in case.weights.items():
        end = next((end for end in names if name.endswith(end)), None)
        old[name if end is None else name.removesuffix(end) + names[end]] = tensor
    assert sum(name.endswith("gamma") for name in old) == 6
    old["bert.embeddings.position_ids"] = np.arange(32)[None]
    same(read_model(write(case, tmp_path, old)).params, case.params())


@pytest.mark.parametrize(
    ("name", "decoder", "bias"),
    [
        ("bert-pretraining", "cls.predictions.decoder", "cls.predictions.bias"),
        ("roberta-masked", "lm_head.decoder", "lm_head.bias"),
        ("albert-pretraining", "predictions.decoder", "predictions.bias"),
    ],
)
def test_what_files_hold_twice_must_be_equal(name: str, decoder: str, bias: str, tmp_path: Path) -> None:
    case = CASES[name]
    embedding = next(name for name in case.weights if name.endswith("word_embeddings.weight"))
    twice = {f"{decoder}.weight": case.weights[embedding], f"{decoder}.bias": case.weights[bias]}
    same(read_model(write(case, tmp_path, case.weights | twice)).params, case.params())
    for copy, says in ((f"{decoder}.weight", "ties head and embedding"), (f"{decoder}.bias", "is to repeat")):
        other = twice | {copy: twice[copy] + 1}
        with pytest.raises(TensorsError, match=says):
            read_model(write(case, tmp_path, case.weights | other))


def test_labels_stay_with_the_classes_they_name() -> None:
    sequence, tokens, span = (CASES[f"bert-{kind}"].spec.task for kind in ("sequence", "tokens", "span"))
    assert (sequence.kind, sequence.labels, sequence.dropout) == (
        "sequence",
        ("negative", "neutral", "积极"),
        0.2,
    )
    assert (tokens.kind, tokens.labels) == ("tokens", ("O", "B", "I", "E"))
    assert (span.kind, span.outputs, span.labels) == ("span", 2, ())
    assert CASES["roberta-sequence"].spec.task.dense
    published = CASES["bert-sequence"].config
    unsorted = {str(i): f"class {i}" for i in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}
    assert bert.from_hf(published | {"id2label": unsorted}).task.labels[:2] == ("class 0", "class 1")
    unnamed = {key: value for key, value in published.items() if key != "id2label"}
    assert bert.from_hf(unnamed).task.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("bert-masked", {"architectures": ["BertLMHeadModel"]}, "architecture 'BertLMHeadModel'"),
        ("bert-masked", {"is_decoder": True}, "is_decoder True"),
        ("bert-masked", {"position_embedding_type": "relative_key"}, "'relative_key'"),
        ("bert-masked", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("roberta-masked", {"hidden_act": "relu"}, "'relu' under a head that knows 'gelu' only"),
        ("albert-masked", {"num_hidden_groups": 2}, "num_hidden_groups 2"),
        ("albert-masked", {"inner_group_num": 2}, "inner_group_num 2"),
    ],
)
def test_what_is_not_done_here_is_refused(name: str, change: dict[str, Any], says: str) -> None:
    case = CASES[name]
    with pytest.raises(ConfigRefused, match=says):
        case.page.from_hf(case.config | change)


def test_a_missing_and_an_extra_tensor_are_named(tmp_path: Path) -> None:
    case = CASES["bert-pretraining"]
    weights = dict(case.weights)
    weights["cls.predictions.dense.bias"] = weights.pop("cls.predictions.transform.dense.bias")
    with pytest.raises(TensorsError, match=r"(?s)missing: cls\.predictions\.transform\.dense\.bias \[18\]"):
        read_model(write(case, tmp_path, weights))
    del weights["bert.pooler.dense.weight"]
    with pytest.raises(UnreadableModel, match="pair_head: reads the pooler"):
        read_config(write(case, tmp_path, weights))


def test_export_refuses_what_a_class_cannot_say() -> None:
    import dataclasses

    spec = CASES["bert-masked"].spec
    with pytest.raises(ConfigRefused, match="shared_layers is True"):
        bert.to_hf(dataclasses.replace(spec, shared_layers=True))
    with pytest.raises(ConfigRefused, match="position_offset is 2"):
        bert.to_hf(dataclasses.replace(spec, position_offset=2))
    with pytest.raises(ConfigRefused, match="pair_head is True"):
        roberta.to_hf(
            dataclasses.replace(spec, position_offset=2, activation="gelu", pooler=True, pair_head=True)
        )
    with pytest.raises(ConfigRefused, match="masked_head is True"):
        bert.to_gguf(spec)
    with pytest.raises(ConfigRefused, match=r"token_types is 0, and llama\.cpp's bert loads no model"):
        bert.to_gguf(dataclasses.replace(spec, token_types=0))
    # A file with a pooler beside the head is said by the class with the head.
    both = dataclasses.replace(CASES["roberta-masked"].spec, pooler=True)
    assert roberta.to_hf(both)["architectures"] == ["RobertaForMaskedLM"]


def test_names_in_gguf_files_are_those_of_llama_cpp() -> None:
    case = CASES["bert-bare"]
    assert case.spec.layers == 2
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, case.spec.layers)
    body = {name: tensor for name, tensor in case.weights.items() if "pooler" not in name}
    expected = {theirs.get_name(name, (".weight", ".bias")): tensor for name, tensor in body.items()}
    assert len(expected) == len(body)
    held = Arrays("the checkpoint", expected)
    metadata = {
        "bert.block_count": 2,
        "bert.context_length": 32,
        "bert.embedding_length": 18,
        "bert.feed_forward_length": 37,
        "bert.attention.head_count": 3,
        "bert.attention.layer_norm_epsilon": float(np.float32(1e-12)),
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
    }
    spec = bert.from_gguf(metadata, held)
    assert (spec.vocab_size, spec.token_types, spec.norm_eps) == (41, 3, 1e-12)
    params = read_params(bert.GGUF_NAMES, held, spec)
    wanted = {key: value for key, value in case.params().items() if key != "pool"}
    same(params, wanted)
    assert bert.from_gguf(bert.to_gguf(spec), held) == spec
    with pytest.raises(ConfigRefused, match="causal True"):
        bert.from_gguf(metadata | {"bert.attention.causal": True}, held)


def test_the_pages_of_encoders_are_in_the_registry() -> None:
    pages = families()
    assert [pages[name] for name in ("bert", "roberta", "albert")] == [bert, roberta, albert]
    assert pages["xlm_roberta"].HF_TYPES == ("xlm-roberta",)
