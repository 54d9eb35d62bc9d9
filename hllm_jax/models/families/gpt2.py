"""GPT-2 (Radford et al. 2019), and what is built like it: DistilGPT-2, CPM and other Chinese GPT-2s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import gpt_like
from hllm_jax.models.families.llama_like import gguf_head, single
from hllm_jax.models.families.published import Keys, activation_to_hf, refuse_unsaid
from hllm_jax.models.families.table import Table, Tensors
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("gpt2",)
GGUF_ARCHITECTURES = ("gpt2",)

_LAYER = "transformer.h.{}"

HF_NAMES = Table(
    rows=(
        *gpt_like.outer_rows("transformer.wte.weight", "transformer.wpe.weight"),
        *gpt_like.norm_rows(f"{_LAYER}.ln_1", "layers_{}/attention_norm"),
        *gpt_like.attention_rows(f"{_LAYER}.attn.c_attn", f"{_LAYER}.attn.c_proj", transposed=False),
        *gpt_like.norm_rows(f"{_LAYER}.ln_2", "layers_{}/mlp_norm"),
        *gpt_like.mlp_rows(f"{_LAYER}.mlp.c_fc", f"{_LAYER}.mlp.c_proj", transposed=False),
        *gpt_like.norm_rows("transformer.ln_f", "final_norm"),
    ),
    # Causal masks, which old versions of transformers saved.
    ignored=(f"{_LAYER}.attn.bias", f"{_LAYER}.attn.masked_bias"),
    tied=("lm_head.weight",),
    prefix="transformer.",
)

GGUF_NAMES = Table(
    rows=(
        *gpt_like.outer_rows("token_embd.weight", "position_embd.weight", "output.weight"),
        *gpt_like.norm_rows("blk.{}.attn_norm", "layers_{}/attention_norm"),
        *gpt_like.attention_rows("blk.{}.attn_qkv", "blk.{}.attn_output", transposed=True),
        *gpt_like.norm_rows("blk.{}.ffn_norm", "layers_{}/mlp_norm"),
        *gpt_like.mlp_rows("blk.{}.ffn_up", "blk.{}.ffn_down", transposed=True),
        *gpt_like.norm_rows("output_norm", "final_norm"),
    ),
    tied=("output.weight",),
)

_FIXED: dict[str, Any] = {**gpt_like.FIXED, "qkv_bias": True}


def _size(layers: int, embed: int, heads: int) -> DecoderConfig:
    return DecoderConfig(
        **_FIXED,
        vocab_size=50257,
        max_length=1024,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=4 * embed,
        activation="gelu_tanh",
        dropout=0.1,
        attention_dropout=0.1,
    )


PRESETS: dict[str, DecoderConfig] = {
    "gpt2": _size(12, 768, 12),
    "gpt2-medium": _size(24, 1024, 16),
    "gpt2-large": _size(36, 1280, 20),
    "gpt2-xl": _size(48, 1600, 25),
    "distilgpt2": _size(6, 768, 12),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `GPT2LMHeadModel` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    # Whether scores are computed in another order or dtype changes only their rounding.
    keys = Keys(published, silent=(*gpt_like.SILENT, "embd_pdrop", "reorder_and_upcast_attn"))
    keys.only("add_cross_attention", False)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    embed, heads = keys.take("n_embd"), keys.take("n_head")
    spec = DecoderConfig(
        **_FIXED,
        vocab_size=keys.take("vocab_size"),
        max_length=keys.take("n_positions", 1024),
        layers=keys.take("n_layer"),
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=keys.take("n_inner", 4 * embed),
        activation=keys.activation("activation_function", "gelu_new"),
        attention_scale=None if keys.take("scale_attn_weights", True) else 1.0,
        norm_eps=keys.take("layer_norm_epsilon", 1e-5),
        dropout=keys.take("resid_pdrop", 0.1),
        attention_dropout=keys.take("attn_pdrop", 0.1),
        tie_embeddings=keys.take("tie_word_embeddings", True),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `GPT2LMHeadModel`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    gpt_like.refuse_other_heads(spec, "GPT2LMHeadModel")
    published = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": HF_TYPES[0],
        "vocab_size": spec.vocab_size,
        "n_positions": spec.max_length,
        "n_layer": spec.layers,
        "n_embd": spec.embed,
        "n_head": spec.heads,
        "n_inner": None if spec.mlp_size == 4 * spec.embed else spec.mlp_size,
        "activation_function": activation_to_hf(spec.activation),
        "scale_attn_weights": spec.attention_scale is None,
        "layer_norm_epsilon": spec.norm_eps,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.attention_dropout,
        "tie_word_embeddings": spec.tie_embeddings,
        "initializer_range": spec.init_std,
        # llama.cpp's converter looks for this key, which transformers no longer writes.
        "n_ctx": spec.max_length,
    }
    refuse_unsaid(spec, from_hf(published), "GPT2LMHeadModel")
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `gpt2.*`) to our spec; the vocabulary is as long as its embedding.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(metadata, prefix="gpt2.", where="the GGUF file")
    heads = keys.take("attention.head_count")
    keys.only("attention.head_count_kv", heads)
    spec = DecoderConfig(
        **_FIXED,
        vocab_size=keys.take("vocab_size", tensors.shapes.get("token_embd.weight", (0,))[0]),
        max_length=keys.take("context_length"),
        layers=keys.take("block_count"),
        embed=keys.take("embedding_length"),
        heads=heads,
        kv_heads=heads,
        mlp=keys.take("feed_forward_length"),
        activation="gelu_tanh",
        norm_eps=single(keys.take("attention.layer_norm_epsilon")),
        tie_embeddings="output.weight" not in tensors.shapes,
    )
    keys.finish()
    return spec


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `gpt2` does not.
    """
    gpt_like.refuse_other_heads(spec, "llama.cpp's gpt2")
    values = {
        "block_count": spec.layers,
        "context_length": spec.max_length,
        "embedding_length": spec.embed,
        "feed_forward_length": spec.mlp_size,
        "attention.head_count": spec.heads,
        "attention.layer_norm_epsilon": spec.norm_eps,
        "vocab_size": spec.vocab_size,
    }
    metadata = {f"{GGUF_ARCHITECTURES[0]}.{key}": value for key, value in values.items()}
    refuse_unsaid(spec, from_gguf(metadata, gguf_head(spec)), "llama.cpp's gpt2")
    return metadata
