"""The names of ChatGLM and first GLM-4 files: the recorded GLM, its tensors joined as that class has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hllm_jax.interop import write_safetensors
from hllm_jax.interop.models import read_model
from hllm_jax.models.families import chatglm, glm4
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Arrays
from tests.models.families.contract import TOLERANCE, Case, differences, recorded

# The numbers of THUDM/glm-4-9b-chat's config.json.
PUBLISHED = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_layers": 40,
    "rope_ratio": 500,
    "original_rope": True,
    "padded_vocab_size": 151552,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 131072,
    "tie_word_embeddings": False,
}


def glm() -> Case:
    return next(case for case in recorded() if repr(case) == "glm4-glm")


def as_first_published(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of a `GlmForCausalLM` under the names of `modeling_chatglm.py`."""
    renamed = {"model.embed_tokens": "embedding.word_embeddings", "model.norm": "encoder.final_layernorm"}
    tensors = {f"transformer.{ours}.weight": weights[f"{name}.weight"] for name, ours in renamed.items()}
    tensors["transformer.output_layer.weight"] = weights["lm_head.weight"]
    inside = {
        "input_layernorm": "input_layernorm",
        "post_attention_layernorm": "post_attention_layernorm",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    for layer in range(2):
        here, there = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        tensors |= {f"{there}{ours}.weight": weights[f"{here}{name}.weight"] for name, ours in inside.items()}
        for kind in ("weight", "bias"):
            parts = [weights[f"{here}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            tensors[f"{there}self_attention.query_key_value.{kind}"] = np.concatenate(parts)
    return tensors


def test_a_folder_of_the_first_form_gives_the_logits_of_glm(tmp_path: Path) -> None:
    import json

    case = glm()
    config = chatglm.to_hf(case.spec)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = as_first_published(case.weights)
    write_safetensors(tmp_path / "model.safetensors", tensors.items())
    found = read_model(tmp_path)
    assert found.config == case.spec
    assert max(differences(case, case.outputs, found.config, found.params).values()) <= TOLERANCE


def test_the_published_config_is_the_preset() -> None:
    assert chatglm.from_hf(PUBLISHED) == glm4.PRESETS["glm-4-9b-chat"]
    with pytest.raises(ConfigRefused, match="add_bias_linear True, only False"):
        chatglm.from_hf(PUBLISHED | {"add_bias_linear": True})
    with pytest.raises(ConfigRefused, match="norm_placement is 'sandwich'"):
        chatglm.to_hf(glm4.PRESETS["glm-4-9b-0414"])


def test_a_gguf_file_says_by_its_tensors_which_form_it_has() -> None:
    spec = glm4.PRESETS["glm-4-9b-chat"]
    joined = Arrays("a file", {f"blk.0.attn_qkv.{kind}": np.empty(0) for kind in ("weight", "bias")})
    apart = Arrays("a file", {f"blk.0.attn_q.{kind}": np.empty(0) for kind in ("weight", "bias")})
    joined.arrays["output.weight"] = apart.arrays["output.weight"] = np.empty(0)  # type: ignore[index]
    metadata = glm4.to_gguf(spec)
    assert chatglm.to_gguf(spec) == metadata
    assert chatglm.from_gguf(metadata, joined) == glm4.from_gguf(metadata, apart) == spec
    with pytest.raises(ConfigRefused, match="in one tensor"):
        glm4.from_gguf(metadata, joined)
    with pytest.raises(ConfigRefused, match="of their own"):
        chatglm.from_gguf(metadata, apart)
