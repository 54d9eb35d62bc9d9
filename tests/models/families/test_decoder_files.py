"""Spellings that files of GPT, Mistral and Qwen come in, and what their formats cannot say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.interop.models import export_page, read_params
from hllm_jax.models import DecoderConfig
from hllm_jax.models.families import families, gpt1, gpt2, gpt_neo, mistral, presets, qwen2, qwen3
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Arrays, TensorsError
from hllm_jax.testing.models import tiny_config
from tests.models.families.contract import Case, recorded

CASES = {repr(case): case for case in recorded()}
GPTS = [case for case in recorded() if case.family in ("gpt1", "gpt2", "gpt_neo")]
WINDOWS = [case for case in recorded() if case.family in ("qwen2", "qwen3")]


def flat(case: Case, weights: dict[str, np.ndarray]) -> dict[Any, np.ndarray]:
    return flatten_dict(read_params(case.page.HF_NAMES, Arrays("the checkpoint", weights), case.spec))


# ---- tensors ----


@pytest.mark.parametrize("case", GPTS, ids=repr)
def test_files_without_the_prefix_and_with_masks_are_read(case: Case) -> None:
    """As the first published files were: bare models, whose causal masks were saved with them."""
    assert len(GPTS) >= 12
    bare = {name.removeprefix("transformer."): weight for name, weight in case.weights.items()}
    inner = "attn.attention" if case.family == "gpt_neo" else "attn"
    bare[f"h.0.{inner}.bias"] = np.tril(np.ones((1, 1, 4, 4), np.uint8))
    if case.family != "gpt1":
        bare[f"h.1.{inner}.masked_bias"] = np.array(-1e9, np.float32)
    whole, read = flat(case, case.weights), flat(case, bare)
    assert read.keys() == whole.keys()
    for path, leaf in whole.items():
        np.testing.assert_array_equal(read[path], leaf)


def test_a_head_that_is_saved_with_its_embedding_must_be_it() -> None:
    case = CASES["gpt2-tied"]
    table = case.weights["transformer.wte.weight"]
    flat(case, {**case.weights, "lm_head.weight": table.copy()})
    with pytest.raises(TensorsError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        flat(case, {**case.weights, "lm_head.weight": table + 1})


def test_weights_are_no_whole_numbers() -> None:
    case = CASES["gpt2-tied"]
    scale = np.ones_like(case.weights["transformer.ln_f.weight"], dtype=np.int32)
    with pytest.raises(TensorsError, match=r"transformer\.ln_f\.weight holds int32, expected floating point"):
        flat(case, {**case.weights, "transformer.ln_f.weight": scale})


# ---- configs ----

# Published files of openai-community/gpt2, distilbert/distilgpt2, openai-community/openai-gpt and
# EleutherAI/gpt-neo-125m, as far as they say numbers.
_HEADS = {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True}
PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (
        gpt2,
        {
            "activation_function": "gelu_new",
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "resid_pdrop": 0.1,
            **_HEADS,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50257,
        },
    ),
    "distilgpt2": (
        gpt2,
        {
            "_num_labels": 1,
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 6,
            "n_positions": 1024,
            **_HEADS,
            "vocab_size": 50257,
        },
    ),
    "gpt1": (
        gpt1,
        {
            "afn": "gelu",
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "layer_norm_epsilon": 1e-05,
            "model_type": "openai-gpt",
            "n_ctx": 512,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 512,
            "n_special": 0,
            "predict_special_tokens": True,
            "resid_pdrop": 0.1,
            **_HEADS,
            "vocab_size": 40478,
        },
    ),
    "gpt-neo-125m": (
        gpt_neo,
        {
            "activation_function": "gelu_new",
            "attention_dropout": 0,
            "attention_layers": ["global", "local"] * 6,
            "attention_types": [[["global", "local"], 6]],
            "embed_dropout": 0,
            "gradient_checkpointing": False,
            "hidden_size": 768,
            "intermediate_size": None,
            "layer_norm_epsilon": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neo",
            "num_heads": 12,
            "num_layers": 12,
            "resid_dropout": 0,
            **_HEADS,
            "vocab_size": 50257,
            "window_size": 256,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_the_presets(name: str, caplog: pytest.LogCaptureFixture) -> None:
    page, published = PUBLISHED[name]
    assert page.from_hf(published) == presets()[name]
    assert not caplog.records


@pytest.mark.parametrize("case", WINDOWS, ids=repr)
def test_windows_by_the_older_keys_are_those_by_layer_types(case: Case) -> None:
    assert sum(case.spec.window is not None for case in WINDOWS) >= 4
    told = {key: value for key, value in case.config.items() if key != "layer_types"}
    if case.name == "by_turns":  # which the older keys cannot say
        assert case.spec.attention_pattern == ("full", "window")
        assert case.page.from_hf(told) != case.spec
    else:
        assert case.page.from_hf(told) == case.spec


def test_windows_that_are_switched_off_are_none() -> None:
    sizes = {**CASES["qwen2-tied"].config, "sliding_window": 9, "max_window_layers": 0, "layer_types": None}
    assert qwen2.from_hf({**sizes, "use_sliding_window": False}).window is None
    assert qwen2.from_hf({**sizes, "use_sliding_window": True}).window == 9


def test_a_mistral_without_the_key_has_the_window_of_its_class() -> None:
    told = dict(CASES["mistral-no_window"].config)
    assert mistral.from_hf(told).window is None
    del told["sliding_window"]
    assert mistral.from_hf(told).window == 4096


def test_a_qwen3_that_says_no_width_of_heads_has_that_of_its_class() -> None:
    told = {key: value for key, value in CASES["qwen3-tied"].config.items() if key != "head_dim"}
    assert qwen3.from_hf(told).head_size == 128


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("gpt2-tied", {"add_cross_attention": True}, "add_cross_attention True"),
        ("gpt2-tied", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2-tied", {"activation_function": "mish"}, "activation_function 'mish'"),
        ("gpt1-tied", {"afn": "gelu_new"}, "afn 'gelu_new'"),
        ("gpt_neo-wide", {"num_layers": 5}, "say 4 layers, num_layers 5"),
        ("gpt_neo-wide", {"attention_types": [[["dilated"], 4]]}, "layers of the kind 'dilated'"),
        ("qwen2-tied", {"layer_types": ["full_attention"]}, "layer_types name 1 layers"),
        ("qwen2-tied", {"use_mrope": True}, "use_mrope True"),
        ("qwen3-tied", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling 'yarn'"),
    ],
)
def test_what_is_not_done_is_refused(name: str, change: dict[str, Any], says: str) -> None:
    case = CASES[name]
    with pytest.raises(ConfigRefused, match=says):
        case.page.from_hf({**case.config, **change})


# ---- out ----


@pytest.mark.parametrize(
    ("family", "spec", "says"),
    [
        ("gpt2", tiny_config(), "4 heads and 2 kv heads of 10 in a stream of 24"),
        ("gpt1", dataclasses.replace(gpt1.PRESETS["gpt1"], activation="gelu"), "no activation 'gelu'"),
        ("gpt_neo", dataclasses.replace(gpt_neo.PRESETS["gpt3-small"], qkv_bias=True), "qkv_bias is True"),
        ("gpt_neo", gpt2.PRESETS["gpt2"], "attention_scale is None"),
        ("mistral", tiny_config(qkv_bias=True), "qkv_bias is True"),
        ("mistral", tiny_config(attention_pattern=("full", "window"), window=3), "attention_pattern"),
        ("qwen2", tiny_config(), "qkv_bias is False"),
        ("qwen3", tiny_config(), "qk_norm is False"),
    ],
)
def test_a_format_refuses_what_it_cannot_say(family: str, spec: DecoderConfig, says: str) -> None:
    with pytest.raises(ConfigRefused, match=says):
        families()[family].to_hf(spec)


def test_an_export_takes_the_page_that_can_say_the_spec() -> None:
    taken: dict[str, str] = {}
    for name in ("llama-2-7b", "mistral-7b-v0.1", "qwen2.5-7b", "qwen3-8b", "gpt2", "gpt3-xl", "gpt1"):
        taken[name] = export_page("to_hf", presets()[name], None)[1]["model_type"]
    assert list(taken.values()) == ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neo", "openai-gpt"]
    # Without a window, Mistral is a LLaMA.
    assert export_page("to_hf", presets()["mistral-7b-v0.3"], None)[1]["model_type"] == "llama"
    assert export_page("to_gguf", presets()["mistral-7b-v0.3"], None)[0].GGUF_ARCHITECTURES == ("llama",)
    with pytest.raises(ConfigRefused, match="window is 4096"):
        export_page("to_gguf", presets()["mistral-7b-v0.1"], None)
