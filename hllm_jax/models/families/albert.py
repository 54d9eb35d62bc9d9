"""ALBERT (Lan et al. 2020): narrow tables, one block for all layers, and the order of sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import bert_like
from hllm_jax.models.families.forms import Same
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Row, Table, row
from hllm_jax.models.spec import EncoderConfig

HF_TYPES = ("albert",)

#: See `bert.HF_HEADS`.
HF_HEADS = {
    "predictions.dense.weight": "masked_head",
    "albert.pooler.weight": "pooler",
    "sop_classifier.classifier.weight": "pair_head",
}


def _layer_rows() -> tuple[Row, ...]:
    theirs, ours = "albert.encoder.albert_layer_groups.0.albert_layers.0.", "shared_layer/"
    return (
        *(
            each
            for name in ("query", "key", "value")
            for each in bert_like.linear(f"{theirs}attention.{name}", f"{ours}attention/{name}")
        ),
        *bert_like.linear(f"{theirs}attention.dense", f"{ours}attention/out", inputs=2),
        *bert_like.norm(f"{theirs}attention.LayerNorm", f"{ours}attention_norm"),
        *bert_like.linear(f"{theirs}ffn", f"{ours}mlp/up"),
        *bert_like.linear(f"{theirs}ffn_output", f"{ours}mlp/down"),
        *bert_like.norm(f"{theirs}full_layer_layer_norm", f"{ours}mlp_norm"),
    )


HF_NAMES = Table(
    rows=(
        *bert_like.embedding_rows("albert."),
        *bert_like.linear("albert.encoder.embedding_hidden_mapping_in", "widen"),
        *_layer_rows(),
        *bert_like.linear("albert.pooler", "pool"),
        *bert_like.linear("predictions.dense", "masked_dense"),
        *bert_like.norm("predictions.LayerNorm", "masked_norm"),
        row("predictions.bias", "masked_bias", Same()),
        *bert_like.linear("sop_classifier.classifier", "pair"),
        *bert_like.linear("classifier", "sequence_head/out"),
        *bert_like.linear("classifier", "tokens_head/out"),
        *bert_like.linear("qa_outputs", "span_head/out"),
    ),
    ignored=("albert.embeddings.position_ids", "albert.embeddings.token_type_ids"),
    tied=("predictions.decoder.weight",),
    prefix="albert.",
    copies=(("predictions.decoder.bias", "predictions.bias"),),
)

_CLASSES = ("ForPreTraining", "ForMaskedLM", "Model")


def _size(layers: int, embed: int, heads: int, activation: str, dropout: float = 0.0) -> EncoderConfig:
    return EncoderConfig(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=4 * embed,
        vocab_size=30000,
        embedding=128,
        shared_layers=True,
        activation=activation,  # pyrefly: ignore
        dropout=dropout,
        attention_dropout=dropout,
    )


PRESETS: dict[str, EncoderConfig] = {
    "albert-base-v1": _size(12, 768, 12, "gelu", 0.1),
    "albert-large-v1": _size(24, 1024, 16, "gelu", 0.1),
    "albert-xlarge-v1": _size(24, 2048, 16, "gelu", 0.1),
    "albert-xxlarge-v1": _size(12, 4096, 64, "gelu"),
    "albert-base-v2": _size(12, 768, 12, "gelu_tanh"),
    "albert-large-v2": _size(24, 1024, 16, "gelu_tanh"),
    "albert-xlarge-v2": _size(24, 2048, 16, "gelu_tanh"),
    "albert-xxlarge-v2": _size(12, 4096, 64, "gelu_tanh"),
}


def from_hf(published: Mapping[str, Any]) -> EncoderConfig:
    """config.json of a model of ALBERT, with the heads of the class that it names.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the output.
    """
    keys = Keys(published, bert_like.SILENT)
    keys.only("num_hidden_groups", 1)
    keys.only("inner_group_num", 1)
    heads = bert_like.heads_from_hf(published, keys, "Albert", "classifier_dropout_prob")
    spec = EncoderConfig(
        **bert_like.body_from_hf(keys),
        **heads,
        embedding=keys.take("embedding_size", 128),
        shared_layers=True,
    )
    keys.finish()
    return spec


def to_hf(spec: EncoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of the class of ALBERT that has its heads; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what ALBERT does not.
    """
    published: dict[str, Any] = {
        **bert_like.body_to_hf(spec, HF_TYPES[0]),
        **bert_like.heads_to_hf(spec, "Albert", "classifier_dropout_prob", _CLASSES),
        "embedding_size": spec.embedding_size,
    }
    refuse_unsaid(spec, bert_like.same_heads(spec, from_hf(published)), published["architectures"][0])
    return published
