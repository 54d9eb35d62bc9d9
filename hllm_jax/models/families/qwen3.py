"""Qwen3 (Yang et al. 2025), dense: LLaMA whose queries and keys are normalised head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Table, Tensors
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("qwen3",)
GGUF_ARCHITECTURES = ("qwen3",)

HF_NAMES = Table(
    rows=llama_like.hf_rows(),
    tied=("lm_head.weight",),
)

GGUF_NAMES = Table(rows=llama_like.gguf_rows(paired=False), tied=("output.weight",))


def _size(layers: int, embed: int, heads: int, mlp: int, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        mlp=mlp,
        vocab_size=151936,
        max_length=40960,
        norm_eps=1e-6,
        rope_theta=1e6,
        qk_norm=True,
        tie_embeddings=tied,
    )


# The chat models; those called Base have 32,768 positions.
PRESETS: dict[str, DecoderConfig] = {
    "qwen3-0.6b": _size(28, 1024, 16, 3072, True),
    "qwen3-1.7b": _size(28, 2048, 16, 6144, True),
    "qwen3-4b": _size(36, 2560, 32, 9728, True),
    "qwen3-8b": _size(36, 4096, 32, 12288, False),
    "qwen3-14b": _size(40, 5120, 40, 17408, False),
    "qwen3-32b": _size(64, 5120, 64, 25600, False),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `Qwen3ForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published)
    sizes, bias = llama_like.sizes_from_hf(keys), keys.take("attention_bias", False)
    # Its class does not derive it from the width.
    sizes["head_dim"] = sizes["head_dim"] or 128
    spec = DecoderConfig(
        **sizes,
        **keys.rope(),
        **llama_like.upper_windows_from_hf(keys, sizes["layers"]),
        qk_norm=True,
        qkv_bias=bias,
        out_bias=bias,
        tie_embeddings=keys.take("tie_word_embeddings", False),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `Qwen3ForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    published = {
        **llama_like.sizes_to_hf(spec, "Qwen3ForCausalLM", HF_TYPES[0]),
        **llama_like.upper_windows_to_hf(spec),
        "head_dim": spec.head_size,
        "attention_bias": spec.qkv_bias,
    }
    refuse_unsaid(spec, from_hf(published), "Qwen3ForCausalLM")
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `qwen3.*`) to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    return llama_like.decoder_from_gguf(metadata, tensors, GGUF_ARCHITECTURES[0], qk_norm=True)


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `qwen3` does not, such as a window.
    """
    metadata = llama_like.sizes_to_gguf(spec, GGUF_ARCHITECTURES[0])
    refuse_unsaid(spec, from_gguf(metadata, llama_like.gguf_head(spec)), "llama.cpp's qwen3")
    return metadata
