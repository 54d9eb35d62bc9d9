"""GPT (Radford et al. 2018), `openai-gpt`: norms after each sum, learned positions, no norm at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import gpt_like
from hllm_jax.models.families.published import ConfigRefused, Keys, refuse_unsaid
from hllm_jax.models.families.table import Table
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.config import Activation

HF_TYPES = ("openai-gpt",)

_LAYER = "transformer.h.{}"

HF_NAMES = Table(
    rows=(
        *gpt_like.outer_rows("transformer.tokens_embed.weight", "transformer.positions_embed.weight"),
        *gpt_like.attention_rows(f"{_LAYER}.attn.c_attn", f"{_LAYER}.attn.c_proj", transposed=False),
        *gpt_like.norm_rows(f"{_LAYER}.ln_1", "layers_{}/attention_norm"),
        *gpt_like.mlp_rows(f"{_LAYER}.mlp.c_fc", f"{_LAYER}.mlp.c_proj", transposed=False),
        *gpt_like.norm_rows(f"{_LAYER}.ln_2", "layers_{}/mlp_norm"),
    ),
    # Causal masks, which old versions of transformers saved.
    ignored=(f"{_LAYER}.attn.bias",),
    tied=("lm_head.weight",),
    prefix="transformer.",
)

#: `afn` of config.json. What it calls `gelu` is the approximation by tanh.
_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu"}

PRESETS: dict[str, DecoderConfig] = {
    "gpt1": DecoderConfig(
        **gpt_like.FIXED,
        qkv_bias=True,
        norm_placement="post",
        vocab_size=40478,
        max_length=512,
        layers=12,
        embed=768,
        heads=12,
        kv_heads=12,
        mlp=3072,
        activation="gelu_tanh",
        dropout=0.1,
        attention_dropout=0.1,
    )
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of an `OpenAIGPTLMHeadModel` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published, silent=(*gpt_like.SILENT, "embd_pdrop"))
    afn, embed, heads = keys.take("afn", "gelu"), keys.take("n_embd"), keys.take("n_head")
    if afn not in _ACTIVATIONS:
        keys.refuse(f"afn {afn!r}, only {', '.join(_ACTIVATIONS)} are implemented")
    spec = DecoderConfig(
        **gpt_like.FIXED,
        qkv_bias=True,
        norm_placement="post",
        vocab_size=keys.take("vocab_size"),
        max_length=keys.take("n_positions", 512),
        layers=keys.take("n_layer"),
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=4 * embed,
        activation=_ACTIVATIONS.get(afn, "gelu_tanh"),
        norm_eps=keys.take("layer_norm_epsilon", 1e-5),
        dropout=keys.take("resid_pdrop", 0.1),
        attention_dropout=keys.take("attn_pdrop", 0.1),
        tie_embeddings=keys.take("tie_word_embeddings", True),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of an `OpenAIGPTLMHeadModel`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    gpt_like.refuse_other_heads(spec, "OpenAIGPTLMHeadModel")
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items() if theirs != "swish"}
    if spec.activation not in names:
        raise ConfigRefused(f"OpenAIGPTLMHeadModel has no activation {spec.activation!r}")
    published = {
        "architectures": ["OpenAIGPTLMHeadModel"],
        "model_type": HF_TYPES[0],
        "vocab_size": spec.vocab_size,
        "n_positions": spec.max_length,
        "n_layer": spec.layers,
        "n_embd": spec.embed,
        "n_head": spec.heads,
        "afn": names[spec.activation],
        "layer_norm_epsilon": spec.norm_eps,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.attention_dropout,
        "tie_word_embeddings": spec.tie_embeddings,
        "initializer_range": spec.init_std,
    }
    refuse_unsaid(spec, from_hf(published), "OpenAIGPTLMHeadModel")
    return published
