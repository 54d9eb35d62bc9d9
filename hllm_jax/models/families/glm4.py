"""GLM-4 (GLM Team 2024) as `transformers` knows it: `glm`, and `glm4` of April 2025 with two more norms.

Half of each head's coordinates turn, in neighbouring pairs; query, key and value have a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.forms import Joined, Matrix, Same
from hllm_jax.models.families.published import ConfigRefused, Keys, refuse_unsaid
from hllm_jax.models.families.table import Table, Tensors, row
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("glm", "glm4")
GGUF_ARCHITECTURES = ("chatglm", "glm4")
CLASSES = {"glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM"}
GATE_UP = ("layers_{}/mlp/gate/kernel", "layers_{}/mlp/up/kernel")

HF_NAMES = Table(
    rows=(
        row("model.layers.{}.mlp.gate_up_proj.weight", GATE_UP, Joined(Matrix())),
        *llama_like.outer_rows(),
        *llama_like.norm_rows(
            {
                **llama_like.NORMS,
                "post_self_attn_layernorm": "attention_out_norm",
                "post_mlp_layernorm": "mlp_out_norm",
            }
        ),
        *llama_like.attention_rows(),
        *llama_like.mlp_rows(),
    ),
    tied=("lm_head.weight",),
)

GGUF_NAMES = Table(
    rows=(
        row("blk.{}.ffn_up.weight", GATE_UP, Joined(Matrix())),
        row("blk.{}.post_attention_norm.weight", "layers_{}/attention_out_norm/scale", Same()),
        row("blk.{}.post_ffw_norm.weight", "layers_{}/mlp_out_norm/scale", Same()),
        *llama_like.gguf_rows(paired=False),
    ),
    tied=("output.weight",),
)

#: What no config says, because no model of the family has anything else.
ALWAYS: dict[str, Any] = {"rope_pairing": "interleaved"}

_GLM: dict[str, Any] = {
    "vocab_size": 151552,
    "kv_heads": 2,
    "head_dim": 128,
    "rope_fraction": 0.5,
    "qkv_bias": True,
    "tie_embeddings": False,
    **ALWAYS,
}
_9B: dict[str, Any] = {**_GLM, "layers": 40, "embed": 4096, "heads": 32, "mlp": 13696}
_0414: dict[str, Any] = {"norm_placement": "sandwich", "norm_eps": 1e-5, "max_length": 32768}

PRESETS: dict[str, DecoderConfig] = {
    "glm-4-9b": DecoderConfig(**_9B, norm_eps=1.5625e-7, max_length=8192),
    "glm-4-9b-chat": DecoderConfig(**_9B, norm_eps=1.5625e-7, max_length=131072, rope_theta=5e6),
    "glm-4-9b-0414": DecoderConfig(**_9B, **_0414),
    "glm-4-32b-0414": DecoderConfig(
        **_GLM | _0414 | {"layers": 61, "embed": 6144, "heads": 48, "mlp": 23040, "qkv_bias": False}
    ),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `GlmForCausalLM` or `Glm4ForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published)
    spec = DecoderConfig(
        **llama_like.sizes_from_hf(keys),
        **keys.rope(default_fraction=0.5),
        norm_placement="sandwich" if published.get("model_type") == "glm4" else "pre",
        qkv_bias=keys.take("attention_bias", True),
        tie_embeddings=keys.take("tie_word_embeddings", False),
        **ALWAYS,
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of the class that has its norms; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    kind = "glm4" if spec.norm_placement == "sandwich" else "glm"
    published = llama_like.sizes_to_hf(spec, CLASSES[kind], kind)
    # Both classes turn one half where nothing is said.
    published["rope_parameters"]["partial_rotary_factor"] = spec.rope_fraction
    # The class would otherwise take the last id of the published vocabulary for padding.
    published |= {"attention_bias": spec.qkv_bias, "pad_token_id": None}
    refuse_unsaid(spec, from_hf(published), CLASSES[kind])
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `chatglm.*` or `glm4.*`) to our spec; biases are found in the tensors.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits; query,
            key and value are one tensor (see `families/chatglm.py`).
    """
    spec = spec_from_gguf(metadata, tensors, "blk.0.attn_q.bias")
    if "blk.0.attn_qkv.weight" in tensors.shapes:
        raise ConfigRefused("the GGUF file: query, key and value in one tensor")
    return spec


def spec_from_gguf(metadata: Mapping[str, Any], tensors: Tensors, bias: str) -> DecoderConfig:
    """The spec of a file; `bias` is the name of a tensor that it holds if there are biases."""
    kind = "chatglm" if "chatglm.block_count" in metadata else "glm4"
    keys = Keys(metadata, prefix=f"{kind}.", where="the GGUF file")
    sizes = llama_like.sizes_from_gguf(keys, tensors)
    fraction = keys.take("rope.dimension_count", sizes["head_dim"] // 2) / sizes["head_dim"]
    spec = DecoderConfig(
        **sizes,
        rope_fraction=fraction,
        norm_placement="sandwich" if kind == "glm4" else "pre",
        qkv_bias=bias in tensors.shapes,
        **ALWAYS,
    )
    keys.finish()
    return spec


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `chatglm` and `glm4` do not.
    """
    kind = "glm4" if spec.norm_placement == "sandwich" else "chatglm"
    metadata = llama_like.sizes_to_gguf(spec, kind)
    biases = {"blk.0.attn_q.bias": np.empty(0)} if spec.qkv_bias else {}
    held = llama_like.gguf_head(spec, **biases)
    refuse_unsaid(spec, from_gguf(metadata, held), f"llama.cpp's {kind}")
    return metadata
