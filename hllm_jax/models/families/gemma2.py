"""Gemma 2 (Gemma Team 2024): soft caps, a norm before and after each part, every other layer in a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.forms import Same
from hllm_jax.models.families.published import Keys, layer_types, refuse_unsaid
from hllm_jax.models.families.table import Table, Tensors, row
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("gemma2",)
GGUF_ARCHITECTURES = ("gemma2",)

#: Files of `transformers` hold the scale of a norm minus one, llama.cpp's the scale.
_MINUS_ONE = Same(offset=1.0)

HF_NAMES = Table(
    rows=(
        *llama_like.outer_rows(_MINUS_ONE),
        *llama_like.norm_rows(
            {
                "input_layernorm": "attention_norm",
                "post_attention_layernorm": "attention_out_norm",
                "pre_feedforward_layernorm": "mlp_norm",
                "post_feedforward_layernorm": "mlp_out_norm",
            },
            _MINUS_ONE,
        ),
        *llama_like.attention_rows(),
        *llama_like.mlp_rows(),
    ),
    tied=("lm_head.weight",),
)

GGUF_NAMES = Table(
    rows=(
        *llama_like.gguf_rows(paired=False),
        row("blk.{}.post_attention_norm.weight", "layers_{}/attention_out_norm/scale", Same()),
        row("blk.{}.post_ffw_norm.weight", "layers_{}/mlp_out_norm/scale", Same()),
    ),
    tied=("output.weight",),
)

#: What no config says, because no model of the family has anything else.
_ALWAYS: dict[str, Any] = {"norm_placement": "sandwich"}


def _scale(scalar: int, head_dim: int) -> float | None:
    """Of the scores, where it is not the usual one."""
    return None if scalar == head_dim else scalar**-0.5


def _size(
    layers: int, embed: int, heads: int, kv_heads: int, head_dim: int, mlp: int, scalar: int
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=256000,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=mlp,
        max_length=8192,
        norm_eps=1e-6,
        activation="gelu_tanh",
        attention_scale=_scale(scalar, head_dim),
        attention_softcap=50.0,
        logit_softcap=30.0,
        embed_scale=math.sqrt(embed),
        attention_pattern=("window", "full"),
        window=4096,
        **_ALWAYS,
    )


PRESETS: dict[str, DecoderConfig] = {
    "gemma-2-2b": _size(26, 2304, 8, 4, 256, 9216, 256),
    "gemma-2-9b": _size(42, 3584, 16, 8, 256, 14336, 256),
    "gemma-2-27b": _size(46, 4608, 32, 16, 128, 36864, 144),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `Gemma2ForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published, silent=("cache_implementation", "sliding_window_size"))
    keys.only("use_bidirectional_attention", False)
    bias = keys.take("attention_bias", False)
    sizes = llama_like.sizes_from_hf(keys)
    sizes["head_dim"] = sizes["head_dim"] or 256
    kinds = keys.take("layer_types", [("sliding", "full")[i % 2] for i in range(sizes["layers"])])
    spec = DecoderConfig(
        **sizes
        | keys.rope()
        | keys.windows(keys.nullable("sliding_window", 4096), kinds)
        # `hidden_act` stands in published files too, and is not what the class reads.
        | {"activation": keys.activation("hidden_activation", "gelu_pytorch_tanh")},
        qkv_bias=bias,
        out_bias=bias,
        attention_scale=_scale(keys.take("query_pre_attn_scalar", 256), sizes["head_dim"]),
        attention_softcap=keys.nullable("attn_logit_softcapping", 50.0),
        logit_softcap=keys.nullable("final_logit_softcapping", 30.0),
        embed_scale=math.sqrt(sizes["embed"]),
        tie_embeddings=keys.take("tie_word_embeddings", True),
        **_ALWAYS,
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `Gemma2ForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    published = llama_like.sizes_to_hf(spec, "Gemma2ForCausalLM", HF_TYPES[0])
    published |= {
        "layer_types": layer_types(spec),
        "sliding_window": spec.window,
        "hidden_activation": published["hidden_act"],
        "attention_bias": spec.qkv_bias,
        "query_pre_attn_scalar": _scalar(spec),
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
    }
    refuse_unsaid(spec, from_hf(published), "Gemma2ForCausalLM")
    return published


def _scalar(spec: DecoderConfig) -> int:
    """What the class takes the root of: a whole number."""
    return spec.head_size if spec.attention_scale is None else round(spec.attention_scale**-2)


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `gemma2.*`) to our spec.

    Some things no key says: every other layer has a window, and the scores of a model of 46 layers (27B) are
    scaled by the width of a head in an even split of the stream.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(metadata, prefix="gemma2.", where="the GGUF file")
    sizes = llama_like.sizes_from_gguf(keys, tensors)
    keys.only("rope.dimension_count", sizes["head_dim"])
    spec = DecoderConfig(
        **sizes,
        activation="gelu_tanh",
        attention_scale=_scale(_gguf_scalar(sizes), sizes["head_dim"]),
        attention_softcap=llama_like.single(keys.take("attn_logit_softcapping", 50.0)),
        logit_softcap=llama_like.single(keys.take("final_logit_softcapping", 30.0)),
        embed_scale=math.sqrt(sizes["embed"]),
        attention_pattern=("window", "full"),
        window=keys.take("attention.sliding_window", 4096),
        **_ALWAYS,
    )
    keys.finish()
    return spec


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `gemma2` does not.
    """
    metadata = llama_like.sizes_to_gguf(spec, GGUF_ARCHITECTURES[0])
    said = {
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "attention.sliding_window": spec.window,
    }
    metadata |= {f"gemma2.{key}": value for key, value in said.items() if value is not None}
    refuse_unsaid(spec, from_gguf(metadata, llama_like.gguf_head(spec)), "llama.cpp's gemma2")
    return metadata


def _gguf_scalar(sizes: Mapping[str, Any]) -> int:
    even = sizes["layers"] == PRESETS["gemma-2-27b"].layers
    return sizes["embed"] // sizes["heads"] if even else sizes["head_dim"]
