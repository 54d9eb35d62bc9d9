"""Mistral 7B (Jiang et al. 2023): LLaMA whose layers look back a window of tokens, in its first version.

llama.cpp knows it as `llama`, without a window: what has one cannot be said in GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Table
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("mistral",)

HF_NAMES = Table(
    rows=llama_like.hf_rows(),
    ignored=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
    tied=("lm_head.weight",),
)


def _7b(vocab_size: int = 32000, **more: Any) -> DecoderConfig:
    return DecoderConfig(
        layers=32,
        embed=4096,
        heads=32,
        kv_heads=8,
        mlp=14336,
        vocab_size=vocab_size,
        max_length=32768,
        tie_embeddings=False,
        **more,
    )


PRESETS: dict[str, DecoderConfig] = {
    "mistral-7b-v0.1": _7b(attention_pattern=("window",), window=4096),
    "mistral-7b-v0.2": _7b(rope_theta=1e6),
    "mistral-7b-v0.3": _7b(vocab_size=32768, rope_theta=1e6),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `MistralForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published)
    # A null says that there is no window; where there is no key, transformers takes this one.
    window = keys.take("sliding_window", None) if "sliding_window" in published else 4096
    spec = DecoderConfig(
        **llama_like.sizes_from_hf(keys),
        **keys.rope(),
        **keys.windows(window, ["full" if window is None else "sliding"]),
        tie_embeddings=keys.take("tie_word_embeddings", False),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `MistralForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    published = {
        **llama_like.sizes_to_hf(spec, "MistralForCausalLM", HF_TYPES[0]),
        "sliding_window": spec.window,
    }
    refuse_unsaid(spec, from_hf(published), "MistralForCausalLM")
    return published
