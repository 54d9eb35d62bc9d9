"""GLM as published first (Du et al. 2022): a text is read in both directions, its blanks are written in one.

Positions are two numbers, each with a learned table. The class came with the weights (`modeling_glm.py`); its
model type `glm` is what `transformers` has since called another model, that of `families/glm4.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import gpt_like
from hllm_jax.models.families.forms import Same
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Table, row
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("glm",)

_STACK = "glm.transformer."
_LAYER = f"{_STACK}layers.{{}}."

HF_NAMES = Table(
    rows=(
        *gpt_like.outer_rows("glm.word_embeddings.weight", f"{_STACK}position_embeddings.weight"),
        row(f"{_STACK}block_position_embeddings.weight", "span_position/embedding", Same()),
        *gpt_like.norm_rows(f"{_LAYER}input_layernorm", "layers_{}/attention_norm"),
        *gpt_like.attention_rows(
            f"{_LAYER}attention.query_key_value", f"{_LAYER}attention.dense", transposed=True
        ),
        *gpt_like.norm_rows(f"{_LAYER}post_attention_layernorm", "layers_{}/mlp_norm"),
        *gpt_like.mlp_rows(f"{_LAYER}mlp.dense_h_to_4h", f"{_LAYER}mlp.dense_4h_to_h", transposed=True),
        *gpt_like.norm_rows(f"{_STACK}final_layernorm", "final_norm"),
    ),
    prefix="glm.",
)

#: What no config says, because no model of the family has anything else.
_FIXED: dict[str, Any] = {
    **gpt_like.FIXED,
    "position": "learned_2d",
    "qkv_bias": True,
    "norm_eps": 1e-5,
    # As it was trained. The class that came with the weights computes the exact function, 5e-4 apart.
    "activation": "gelu_tanh",
}


def _size(vocab_size: int, length: int, layers: int, embed: int, heads: int) -> DecoderConfig:
    return DecoderConfig(
        **_FIXED,
        vocab_size=vocab_size,
        max_length=length + 1,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=4 * embed,
        dropout=0.1,
        attention_dropout=0.1,
    )


PRESETS: dict[str, DecoderConfig] = {
    "glm-base": _size(30592, 512, 12, 768, 12),
    "glm-large": _size(30592, 512, 24, 1024, 16),
    "glm-large-chinese": _size(50048, 1024, 24, 1024, 16),
    "glm-roberta-large": _size(50304, 512, 24, 1024, 16),
    "glm-10b": _size(50304, 1024, 48, 4096, 64),
    "glm-10b-chinese": _size(50048, 1024, 48, 4096, 64),
}

_SILENT = (
    # A guard of half precision: scores are divided by it, and multiplied by it before the softmax.
    "attention_scale",
    "auto_map",
    "checkpoint_activations",
    "checkpoint_num_layers",
    "embedding_dropout_prob",
    "max_memory_length",
    "output_predict",
    "parallel_output",
    "pool_token",
    "spell_func",
    "spell_length",
)


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `GLMForConditionalGeneration` (remote code) to our spec.

    Its tables have a row more than `max_sequence_length`: so many positions there are.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published, silent=_SILENT)
    keys.only("block_position_encoding", True)
    keys.only("relative_encoding", False)
    embed, heads = keys.take("hidden_size"), keys.take("num_attention_heads")
    spec = DecoderConfig(
        **_FIXED,
        vocab_size=keys.take("vocab_size"),
        max_length=keys.take("max_sequence_length") + 1,
        layers=keys.take("num_layers"),
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=4 * embed,
        dropout=keys.take("output_dropout_prob", 0.1),
        attention_dropout=keys.take("attention_dropout_prob", 0.1),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `GLMForConditionalGeneration`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    gpt_like.refuse_other_heads(spec, "GLMForConditionalGeneration")
    published = {
        "architectures": ["GLMForConditionalGeneration"],
        "model_type": HF_TYPES[0],
        "vocab_size": spec.vocab_size,
        "max_sequence_length": spec.max_length - 1,
        "num_layers": spec.layers,
        "hidden_size": spec.embed,
        "num_attention_heads": spec.heads,
        "embedding_dropout_prob": spec.dropout,
        "output_dropout_prob": spec.dropout,
        "attention_dropout_prob": spec.attention_dropout,
        "attention_scale": 1.0,
        "block_position_encoding": True,
        "relative_encoding": False,
        "checkpoint_activations": False,
        "checkpoint_num_layers": 1,
        "output_predict": True,
        "parallel_output": True,
        "initializer_range": spec.init_std,
    }
    refuse_unsaid(spec, from_hf(published), "GLMForConditionalGeneration")
    return published
