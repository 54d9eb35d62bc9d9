"""LLaMA (Touvron et al. 2023) and what is built like it: TinyLlama, SmolLM2, the book's Tiny-K."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Table
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.config import RopeScaling

HF_TYPES = ("llama",)
GGUF_ARCHITECTURES = ("llama",)

HF_NAMES = Table(
    rows=(
        *llama_like.outer_rows(),
        *llama_like.norm_rows(llama_like.NORMS),
        *llama_like.attention_rows(),
        *llama_like.mlp_rows(),
    ),
    # Old versions of transformers saved the RoPE frequencies, which follow from the config.
    ignored=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
    tied=("lm_head.weight",),
)

GGUF_NAMES = Table(rows=llama_like.gguf_rows(paired=True), tied=("output.weight",))

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


def from_gguf(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    """GGUF metadata (keys `llama.*`) to our spec; `shapes` are those of the tensors.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(metadata, prefix="llama.", where="the GGUF file")
    keys.only("rope.scaling.type", "none")
    sizes = llama_like.sizes_from_gguf(keys, shapes)
    keys.only("rope.dimension_count", sizes["head_dim"])
    keys.finish()
    return DecoderConfig(**sizes)


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `llama` does not.
    """
    metadata = llama_like.sizes_to_gguf(spec, GGUF_ARCHITECTURES[0])
    head = {} if spec.tie_embeddings else {"output.weight": (spec.vocab_size, spec.embed)}
    refuse_unsaid(spec, from_gguf(metadata, head), "llama.cpp's llama")
    return metadata
