"""LLaMA (Touvron et al. 2023) and what is built like it: TinyLlama, SmolLM2, the book's Tiny-K."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hllm_jax.models.families import llama_like, rope_factors
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.rope_factors import factor_tensors, read_scaling
from hllm_jax.models.families.table import Table, Tensors
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.config import RopeScaling

HF_TYPES = ("llama",)
GGUF_ARCHITECTURES = ("llama",)

HF_NAMES = Table(
    rows=llama_like.hf_rows(),
    # Old versions of transformers saved the RoPE frequencies, which follow from the config.
    ignored=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
    tied=("lm_head.weight",),
)

GGUF_NAMES = Table(
    rows=llama_like.gguf_rows(paired=True), ignored=(rope_factors.NAME,), tied=("output.weight",)
)

# Where llama.cpp looks for biases that a config.json names.
_GGUF_BIASES = {
    "qkv_bias": "blk.0.attn_q.bias",
    "out_bias": "blk.0.attn_output.bias",
    "mlp_bias": "blk.0.ffn_up.bias",
}

_LLAMA_1: dict[str, Any] = {
    "vocab_size": 32000,
    "max_length": 2048,
    "norm_eps": 1e-6,
    "tie_embeddings": False,
}
_LLAMA_2: dict[str, Any] = {"vocab_size": 32000, "max_length": 4096, "tie_embeddings": False}
_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_length": 8192,
    "rope_theta": 500000.0,
    "tie_embeddings": False,
}
_LLAMA_3_1: dict[str, Any] = {
    **_LLAMA_3,
    "max_length": 131072,
    "rope_scaling": RopeScaling(kind="llama3", factor=8.0),
}
_LLAMA_3_2: dict[str, Any] = {
    **_LLAMA_3_1,
    "rope_scaling": RopeScaling(kind="llama3", factor=32.0),
    "tie_embeddings": True,
}
_SMOLLM2: dict[str, Any] = {"vocab_size": 49152, "max_length": 8192, "rope_theta": 100000.0}


def _size(layers: int, embed: int, heads: int, kv_heads: int, mlp: int, **more: Any) -> DecoderConfig:
    return DecoderConfig(layers=layers, embed=embed, heads=heads, kv_heads=kv_heads, mlp=mlp, **more)


PRESETS: dict[str, DecoderConfig] = {
    "book-82m": DecoderConfig(),
    "book-215m": DecoderConfig(embed=1024, layers=18),
    "llama-7b": _size(32, 4096, 32, 32, 11008, **_LLAMA_1),
    "llama-13b": _size(40, 5120, 40, 40, 13824, **_LLAMA_1),
    "llama-33b": _size(60, 6656, 52, 52, 17920, **_LLAMA_1),
    "llama-65b": _size(80, 8192, 64, 64, 22016, **_LLAMA_1),
    "llama-2-7b": _size(32, 4096, 32, 32, 11008, **_LLAMA_2),
    "llama-2-13b": _size(40, 5120, 40, 40, 13824, **_LLAMA_2),
    "llama-2-70b": _size(80, 8192, 64, 8, 28672, **_LLAMA_2),
    "llama-3-8b": _size(32, 4096, 32, 8, 14336, **_LLAMA_3),
    "llama-3-70b": _size(80, 8192, 64, 8, 28672, **_LLAMA_3),
    "llama-3.1-8b": _size(32, 4096, 32, 8, 14336, **_LLAMA_3_1),
    "llama-3.1-70b": _size(80, 8192, 64, 8, 28672, **_LLAMA_3_1),
    "llama-3.1-405b": _size(126, 16384, 128, 8, 53248, **_LLAMA_3_1),
    "llama-3.2-1b": _size(16, 2048, 32, 8, 8192, **_LLAMA_3_2),
    "llama-3.2-3b": _size(28, 3072, 24, 8, 8192, **_LLAMA_3_2),
    "smollm2-135m": _size(30, 576, 9, 3, 1536, **_SMOLLM2),
    "smollm2-360m": _size(32, 960, 15, 5, 2560, **_SMOLLM2),
    "tinyllama-1.1b": _size(22, 2048, 32, 4, 5632, vocab_size=32000, max_length=2048, tie_embeddings=False),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `LlamaForCausalLM` to our spec, in the spellings before and after transformers 5.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published)
    bias = keys.take("attention_bias", False)
    spec = DecoderConfig(
        **llama_like.sizes_from_hf(keys),
        **keys.rope(),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=keys.take("mlp_bias", False),
        rope_pairing="interleaved" if keys.take("rope_interleaved", False) else "half",
        tie_embeddings=keys.take("tie_word_embeddings", False),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `LlamaForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    published = {
        **llama_like.sizes_to_hf(spec, "LlamaForCausalLM", HF_TYPES[0]),
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
    }
    refuse_unsaid(spec, from_hf(published), "LlamaForCausalLM")
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `llama.*`) to our spec.

    Biases, the head and RoPE's factors are found among the tensors. llama.cpp takes Mistral for a `llama`
    too, and gives it no window.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(metadata, prefix="llama.", where="the GGUF file")
    sizes = llama_like.sizes_from_gguf(keys, tensors)
    keys.only("rope.dimension_count", sizes["head_dim"])
    keys.only("attention.scale", 0.0)
    scaling = read_scaling(tensors, sizes["head_dim"], sizes["rope_theta"])
    if scaling is not None and sizes["rope_scaling"] is not None:
        keys.refuse(f"both rope.scaling.factor and {rope_factors.NAME}")
    keys.finish()
    sizes["rope_scaling"] = scaling or sizes["rope_scaling"]
    sizes |= {field: name in tensors.shapes for field, name in _GGUF_BIASES.items()}
    return DecoderConfig(**sizes)


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `llama` does not.
    """
    metadata = llama_like.sizes_to_gguf(spec, GGUF_ARCHITECTURES[0])
    biases = {name: np.empty(0) for field, name in _GGUF_BIASES.items() if getattr(spec, field)}
    held = llama_like.gguf_head(spec, **biases, **gguf_extra(spec))
    refuse_unsaid(spec, from_gguf(metadata, held), "llama.cpp's llama")
    return metadata


def gguf_extra(spec: DecoderConfig) -> dict[str, np.ndarray]:
    """The factors of Llama 3.1's RoPE."""
    return factor_tensors(spec)
