"""Phi-3 (Abdin et al. 2024) and Phi-4: LLaMA with query, key and value, and gate and up, in one tensor each.

The versions for 128k tokens choose their RoPE frequencies by the length of the row ("longrope"): refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.forms import Joined, Matrix
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Table, row
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("phi3",)

HF_NAMES = Table(
    rows=(
        row(
            "model.layers.{}.self_attn.qkv_proj.weight",
            tuple(f"layers_{{}}/attention/{part}/kernel" for part in ("query", "key", "value")),
            Joined(Matrix()),
        ),
        row(
            "model.layers.{}.mlp.gate_up_proj.weight",
            ("layers_{}/mlp/gate/kernel", "layers_{}/mlp/up/kernel"),
            Joined(Matrix()),
        ),
        *llama_like.hf_rows(),
    ),
    tied=("lm_head.weight",),
)

_MINI: dict[str, Any] = {"layers": 32, "embed": 3072, "heads": 32, "kv_heads": 32, "mlp": 8192}
_MEDIUM: dict[str, Any] = {"layers": 40, "embed": 5120, "heads": 40, "kv_heads": 10, "mlp": 17920}
_4K: dict[str, Any] = {
    "vocab_size": 32064,
    "max_length": 4096,
    "attention_pattern": ("window",),
    "window": 2047,
    "tie_embeddings": False,
}

PRESETS: dict[str, DecoderConfig] = {
    "phi-3-mini-4k": DecoderConfig(**_MINI, **_4K),
    "phi-3-medium-4k": DecoderConfig(**_MEDIUM, **_4K),
    "phi-4": DecoderConfig(
        **_MEDIUM, vocab_size=100352, max_length=16384, rope_theta=250000.0, tie_embeddings=False
    ),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `Phi3ForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    # The length of pretraining matters to longrope alone, which is refused.
    keys = Keys(published, silent=("original_max_position_embeddings",))
    window, dropout = keys.take("sliding_window", None), keys.take("resid_pdrop", 0.0)
    keys.only("embd_pdrop", dropout)
    spec = DecoderConfig(
        **llama_like.sizes_from_hf(keys),
        **keys.rope(),
        **keys.windows(window, ["full" if window is None else "sliding"]),
        dropout=dropout,
        tie_embeddings=keys.take("tie_word_embeddings", False),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `Phi3ForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    published: dict[str, Any] = {
        **llama_like.sizes_to_hf(spec, "Phi3ForCausalLM", HF_TYPES[0]),
        "sliding_window": spec.window,
        "original_max_position_embeddings": spec.max_length,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        # The class would otherwise take ids of the published vocabulary.
        "pad_token_id": None,
    }
    published["rope_parameters"]["partial_rotary_factor"] = spec.rope_fraction
    refuse_unsaid(spec, from_hf(published), "Phi3ForCausalLM")
    return published
