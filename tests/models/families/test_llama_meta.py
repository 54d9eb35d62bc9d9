"""LLaMA in Meta's names: weights reordered as Meta keeps them give what `transformers` recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.interop.models import read_params
from hllm_jax.models.families import presets
from hllm_jax.models.families.llama_meta import META_NAMES, from_params, params_of
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Arrays, TensorsError
from hllm_jax.testing.models import tiny_config, tiny_model
from tests.models.families.contract import TOLERANCE, Case, apply, recorded

CASES = [
    case
    for case in recorded()
    if case.family == "llama" and not case.config["attention_bias"] and case.spec.rope_scaling is None
]

#: Meta's names of a layer's tensors by those of `transformers`, and how many heads are reordered.
LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}


def as_meta(case: Case) -> Arrays:
    """The recorded weights, with pairs side by side: the inverse of Hugging Face's conversion script."""
    heads = {"q_proj": case.spec.heads, "k_proj": case.spec.kv_heads}
    arrays: dict[str, np.ndarray] = {}
    for name, weight in case.weights.items():
        stem = name.removesuffix(".weight")
        if stem in OUTER:
            arrays[f"{OUTER[stem]}.weight"] = weight
            continue
        _, _, layer, inner = stem.split(".", 3)
        count = heads.get(inner.split(".")[-1])
        if count is not None:
            weight = weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        arrays[f"layers.{layer}.{LAYER[inner]}.weight"] = weight
    return Arrays("consolidated.00.pth", arrays)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_weights_in_metas_order_give_the_recorded_logits(case: Case) -> None:
    assert len(CASES) >= 4
    ours = apply(case.spec, read_params(META_NAMES, as_meta(case), case.spec), case.inputs)
    assert np.abs(np.asarray(ours["logits"]) - case.outputs["plain/logits"]).max() <= TOLERANCE


def test_there_and_back_is_bit_equal() -> None:
    _, params = tiny_model(tiny_config(tie_embeddings=False))
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(params).items()}
    theirs = Arrays("the checkpoint", dict(META_NAMES.save(flat)))
    again = flatten_dict(read_params(META_NAMES, theirs, tiny_config(tie_embeddings=False)))
    for path, leaf in again.items():
        np.testing.assert_array_equal(leaf, flat["/".join(path)])


# Published files (Touvron et al. 2023; Dubey et al. 2024), and the presets of the same models.
PARAMS: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "dim": 4096,
        "multiple_of": 256,
        "n_heads": 32,
        "n_layers": 32,
        "norm_eps": 1e-06,
        "vocab_size": -1,
    },
    "llama-2-70b": {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    },
    "llama-3-8b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "multiple_of": 1024,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
    },
    "llama-3.1-8b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    },
    "llama-3.2-1b": {
        "dim": 2048,
        "n_layers": 16,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "ffn_dim_multiplier": 1.5,
        "multiple_of": 256,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    },
}


def outer(vocab_size: int, dim: int, head: bool) -> Arrays:
    """The two tables, without their memory; they differ where there is a head of its own."""
    tables = {"tok_embeddings.weight": np.broadcast_to(np.int8(0), (vocab_size, dim))}
    if head:
        tables["output.weight"] = np.broadcast_to(np.int8(1), (vocab_size, dim))
    return Arrays("consolidated.00.pth", tables)


@pytest.mark.parametrize("name", PARAMS)
def test_published_params_are_the_presets(name: str) -> None:
    preset = presets()[name]
    tensors = outer(preset.vocab_size, preset.embed, head=not preset.tie_embeddings)
    assert from_params(PARAMS[name], tensors) == preset


def test_a_head_that_repeats_the_embedding_is_tied() -> None:
    table = np.arange(12.0).reshape(3, 4)
    tensors = {"tok_embeddings.weight": table, "output.weight": table.copy()}
    params = {"dim": 4, "n_layers": 1, "n_heads": 1, "hidden_dim": 8, "vocab_size": 3}
    assert from_params(params, Arrays("the checkpoint", tensors)).tie_embeddings
    tensors["output.weight"][2, 3] = -1
    assert not from_params(params, Arrays("the checkpoint", tensors)).tie_embeddings


def test_the_books_weights_say_their_own_sizes() -> None:
    preset = presets()["book-215m"]
    names = {
        f"layers.{layer}.{name}.weight": np.broadcast_to(np.float32(0), shape)
        for layer in range(18)
        for name, shape in {
            "attention.wk": (512, 1024),
            "feed_forward.w1": (2752, 1024),
            "ffn_norm": (1024,),
        }.items()
    }
    tensors = Arrays("pretrain_1024_18_6144.pth", {**names, **outer(6144, 1024, head=False).arrays})
    spec = from_params(params_of(tensors), tensors)
    assert spec.parameters() == preset.parameters() == 215_127_040
    assert (spec.heads, spec.kv_heads, spec.mlp_size, spec.max_length) == (16, 8, 2752, 512)
    with pytest.raises(TensorsError, match="7 heads do not fit a stream of 1024"):
        params_of(tensors, heads=7)
    with pytest.raises(TensorsError, match=r"holds no matrix tok_embeddings\.weight"):
        params_of(Arrays("other.pth", {}))


def test_what_is_not_done_is_refused() -> None:
    with pytest.raises(ConfigRefused, match="moe_args"):
        from_params({**PARAMS["llama-3-8b"], "moe_args": {"num_experts": 8}}, outer(8, 4096, head=False))
    with pytest.raises(ConfigRefused, match=r"params\.json has no 'n_heads'"):
        from_params({"dim": 8, "n_layers": 1}, outer(8, 8, head=False))
