"""Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA with biases of query, key and value; Qwen1.5 is read too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Table, Tensors
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("qwen2",)
GGUF_ARCHITECTURES = ("qwen2",)

HF_NAMES = Table(
    rows=llama_like.hf_rows(),
    ignored=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
    tied=("lm_head.weight",),
)

GGUF_NAMES = Table(rows=llama_like.gguf_rows(paired=False), tied=("output.weight",))


def _size(layers: int, embed: int, heads: int, kv_heads: int, mlp: int, **more: Any) -> DecoderConfig:
    shared: dict[str, Any] = {"norm_eps": 1e-6, "max_length": 131072, "tie_embeddings": False, **more}
    return DecoderConfig(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        mlp=mlp,
        qkv_bias=True,
        rope_theta=1e6,
        **shared,
    )


_SMALL: dict[str, Any] = {"vocab_size": 151936, "tie_embeddings": True}
_LARGE: dict[str, Any] = {"vocab_size": 152064}

# The base models; chat models of some sizes have another `max_length` and `norm_eps` (14B and more: 1e-6).
PRESETS: dict[str, DecoderConfig] = {
    "qwen2-0.5b": _size(24, 896, 14, 2, 4864, **_SMALL),
    "qwen2-1.5b": _size(28, 1536, 12, 2, 8960, **_SMALL),
    "qwen2-7b": _size(28, 3584, 28, 4, 18944, **_LARGE),
    "qwen2-72b": _size(80, 8192, 64, 8, 29568, **_LARGE, norm_eps=1e-5),
    "qwen2.5-0.5b": _size(24, 896, 14, 2, 4864, **_SMALL, max_length=32768),
    "qwen2.5-1.5b": _size(28, 1536, 12, 2, 8960, **_SMALL),
    "qwen2.5-3b": _size(36, 2048, 16, 2, 11008, **_SMALL, max_length=32768),
    "qwen2.5-7b": _size(28, 3584, 28, 4, 18944, **_LARGE),
    "qwen2.5-14b": _size(48, 5120, 40, 8, 13824, **_LARGE, norm_eps=1e-5),
    "qwen2.5-32b": _size(64, 5120, 40, 8, 27648, **_LARGE, norm_eps=1e-5),
    "qwen2.5-72b": _size(80, 8192, 64, 8, 29568, **_LARGE, norm_eps=1e-5),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `Qwen2ForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published)
    keys.only("use_mrope", False)
    sizes = llama_like.sizes_from_hf(keys)
    spec = DecoderConfig(
        **sizes,
        **keys.rope(),
        **llama_like.upper_windows_from_hf(keys, sizes["layers"]),
        qkv_bias=True,
        tie_embeddings=keys.take("tie_word_embeddings", False),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `Qwen2ForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    published = {
        **llama_like.sizes_to_hf(spec, "Qwen2ForCausalLM", HF_TYPES[0]),
        **llama_like.upper_windows_to_hf(spec),
    }
    refuse_unsaid(spec, from_hf(published), "Qwen2ForCausalLM")
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `qwen2.*`) to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    return llama_like.decoder_from_gguf(metadata, tensors, GGUF_ARCHITECTURES[0], qkv_bias=True)


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `qwen2` does not, such as a window.
    """
    metadata = llama_like.sizes_to_gguf(spec, GGUF_ARCHITECTURES[0])
    refuse_unsaid(spec, from_gguf(metadata, llama_like.gguf_head(spec)), "llama.cpp's qwen2")
    return metadata
