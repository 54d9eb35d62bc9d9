"""ChatGLM2, ChatGLM3 and GLM-4 as first published: the model of `families/glm4.py` under other names.

Their own class came with the weights (`modeling_chatglm.py`); it keeps query, key and value in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hllm_jax.models.families import glm4, llama_like
from hllm_jax.models.families.forms import Joined, Matrix, Same, Vector
from hllm_jax.models.families.published import ConfigRefused, Keys, refuse_unsaid
from hllm_jax.models.families.table import Table, Tensors, row
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("chatglm",)
GGUF_ARCHITECTURES = ("chatglm",)

_QKV = tuple(f"layers_{{}}/attention/{name}" for name in ("query", "key", "value"))
_KERNELS, _BIASES = tuple(f"{path}/kernel" for path in _QKV), tuple(f"{path}/bias" for path in _QKV)
_LAYER = "transformer.encoder.layers.{}."

HF_NAMES = Table(
    rows=(
        row("transformer.embedding.word_embeddings.weight", "embed/embedding", Same()),
        row("transformer.encoder.final_layernorm.weight", "final_norm/scale", Same()),
        row("transformer.output_layer.weight", "head/kernel", Matrix()),
        row(f"{_LAYER}input_layernorm.weight", "layers_{}/attention_norm/scale", Same()),
        row(f"{_LAYER}self_attention.query_key_value.weight", _KERNELS, Joined(Matrix())),
        row(f"{_LAYER}self_attention.query_key_value.bias", _BIASES, Joined(Vector())),
        row(f"{_LAYER}self_attention.dense.weight", "layers_{}/attention/out/kernel", Matrix(inputs=2)),
        row(f"{_LAYER}post_attention_layernorm.weight", "layers_{}/mlp_norm/scale", Same()),
        row(f"{_LAYER}mlp.dense_h_to_4h.weight", glm4.GATE_UP, Joined(Matrix())),
        row(f"{_LAYER}mlp.dense_4h_to_h.weight", "layers_{}/mlp/down/kernel", Matrix()),
    ),
    ignored=("transformer.rotary_pos_emb.inv_freq",),
)

GGUF_NAMES = Table(
    rows=(
        row("blk.{}.attn_qkv.weight", _KERNELS, Joined(Matrix())),
        row("blk.{}.attn_qkv.bias", _BIASES, Joined(Vector())),
        *glm4.GGUF_NAMES.rows,
    ),
    tied=("output.weight",),
)

_6B: dict[str, Any] = {
    "vocab_size": 65024,
    "layers": 28,
    "embed": 4096,
    "heads": 32,
    "kv_heads": 2,
    "head_dim": 128,
    "mlp": 13696,
    "rope_fraction": 0.5,
    "qkv_bias": True,
    "tie_embeddings": False,
    **glm4.ALWAYS,
}

PRESETS: dict[str, DecoderConfig] = {
    "chatglm2-6b": DecoderConfig(**_6B, max_length=32768),
    "chatglm3-6b": DecoderConfig(**_6B, max_length=8192),
}

#: What the class can be told, and what all models of the family say (the first is what a missing key means).
_ONLY: dict[str, tuple[Any, ...]] = {
    "add_bias_linear": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "multi_query_attention": (True,),
    "original_rope": (True,),
    "post_layer_norm": (True,),
    "pre_seq_len": (None,),
    "prefix_projection": (False,),
    "rmsnorm": (True,),
}
_SILENT = (
    "apply_query_key_layer_scaling",
    "attention_softmax_in_fp32",
    "auto_map",
    "bias_dropout_fusion",
    "classifier_dropout",
    "fp32_residual_connection",
    "interleaved_qkv",
    "num_hidden_layers",
    "quantization_bit",
    "vocab_size",
)


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `ChatGLMForConditionalGeneration` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published, silent=_SILENT)
    for key, allowed in _ONLY.items():
        keys.only(key, *allowed)
    heads, embed = keys.take("num_attention_heads"), keys.take("hidden_size")
    spec = DecoderConfig(
        vocab_size=keys.take("padded_vocab_size"),
        layers=keys.take("num_layers"),
        embed=embed,
        heads=heads,
        kv_heads=keys.take("multi_query_group_num"),
        head_dim=keys.take("kv_channels", embed // heads),
        mlp=keys.take("ffn_hidden_size"),
        max_length=keys.take("seq_length"),
        norm_eps=keys.take("layernorm_epsilon", 1e-5),
        rope_theta=10000.0 * keys.take("rope_ratio", 1.0),
        rope_fraction=0.5,
        qkv_bias=keys.take("add_qkv_bias", False),
        dropout=keys.take("hidden_dropout", 0.0),
        attention_dropout=keys.take("attention_dropout", 0.0),
        tie_embeddings=keys.take("tie_word_embeddings", False),
        **glm4.ALWAYS,
    )
    if spec.tie_embeddings:
        keys.refuse("tie_word_embeddings true, which the class does not do")
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `ChatGLMForConditionalGeneration`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    published = {
        "architectures": ["ChatGLMForConditionalGeneration"],
        "model_type": HF_TYPES[0],
        **{key: allowed[0] for key, allowed in _ONLY.items()},
        "padded_vocab_size": spec.vocab_size,
        "num_layers": spec.layers,
        "hidden_size": spec.embed,
        "num_attention_heads": spec.heads,
        "multi_query_group_num": spec.kv_heads,
        "kv_channels": spec.head_size,
        "ffn_hidden_size": spec.mlp_size,
        "seq_length": spec.max_length,
        "layernorm_epsilon": spec.norm_eps,
        "rope_ratio": spec.rope_theta / 10000.0,
        "add_qkv_bias": spec.qkv_bias,
        "hidden_dropout": spec.dropout,
        "attention_dropout": spec.attention_dropout,
        "tie_word_embeddings": spec.tie_embeddings,
    }
    refuse_unsaid(spec, from_hf(published), "ChatGLMForConditionalGeneration")
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `chatglm.*`) of a file that holds query, key and value as one tensor.

    Raises:
        ConfigRefused: it does not, or as `glm4.from_gguf`.
    """
    spec = glm4.spec_from_gguf(metadata, tensors, "blk.0.attn_qkv.bias")
    if "blk.0.attn_qkv.weight" not in tensors.shapes:
        raise ConfigRefused("the GGUF file: query, key and value in tensors of their own")
    return spec


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `chatglm` does not.
    """
    metadata = llama_like.sizes_to_gguf(spec, GGUF_ARCHITECTURES[0])
    names = ("blk.0.attn_qkv.weight", *(("blk.0.attn_qkv.bias",) if spec.qkv_bias else ()))
    held = llama_like.gguf_head(spec, **{name: np.empty(0) for name in names})
    refuse_unsaid(spec, from_gguf(metadata, held), "llama.cpp's chatglm")
    return metadata
