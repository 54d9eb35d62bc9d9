"""RoBERTa (Liu et al. 2019): BERT without token types and next sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import bert_like
from hllm_jax.models.families.forms import Same
from hllm_jax.models.families.published import Keys, refuse_unsaid
from hllm_jax.models.families.table import Table, row
from hllm_jax.models.spec import EncoderConfig

HF_TYPES = ("roberta",)

#: See `bert.HF_HEADS`.
HF_HEADS = {"lm_head.dense.weight": "masked_head", "roberta.pooler.dense.weight": "pooler"}

HF_NAMES = Table(
    rows=(
        *bert_like.embedding_rows("roberta."),
        *bert_like.layer_rows("roberta."),
        *bert_like.linear("roberta.pooler.dense", "pool"),
        *bert_like.linear("lm_head.dense", "masked_dense"),
        *bert_like.norm("lm_head.layer_norm", "masked_norm"),
        row("lm_head.bias", "masked_bias", Same()),
        *bert_like.linear("classifier.dense", "sequence_head/dense"),
        *bert_like.linear("classifier.out_proj", "sequence_head/out"),
        *bert_like.linear("classifier", "tokens_head/out"),
        *bert_like.linear("qa_outputs", "span_head/out"),
    ),
    ignored=("roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids"),
    tied=("lm_head.decoder.weight",),
    prefix="roberta.",
    copies=(("lm_head.decoder.bias", "lm_head.bias"),),
)


def size(layers: int, embed: int, heads: int, vocab_size: int) -> EncoderConfig:
    """A published size."""
    return EncoderConfig(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=4 * embed,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        token_types=1,
        position_offset=2,
        pooler=False,
        pair_head=False,
        dropout=0.1,
        attention_dropout=0.1,
    )


PRESETS: dict[str, EncoderConfig] = {
    "roberta-base": size(12, 768, 12, 50265),
    "roberta-large": size(24, 1024, 16, 50265),
}


def from_hf(published: Mapping[str, Any]) -> EncoderConfig:
    """config.json of a model of RoBERTa, with the heads of the class that it names.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the output.
    """
    return spec_from_hf(published, "Roberta")


def to_hf(spec: EncoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of the class of RoBERTa that has its heads; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what RoBERTa does not.
    """
    return spec_to_hf(spec, "Roberta", HF_TYPES[0])


def spec_from_hf(published: Mapping[str, Any], name: str) -> EncoderConfig:
    """`from_hf` of a family whose classes begin with `name`.

    The first position stands behind that of padding in the table, hence an offset of `pad_token_id` + 1.
    """
    keys = Keys(published, bert_like.SILENT)
    body = bert_like.body_from_hf(keys)
    offset = published.get("pad_token_id", 1) + 1
    body |= {"max_length": body["max_length"] - offset, "position_offset": offset}
    heads = bert_like.heads_from_hf(published, keys, name, dense=True)
    if heads["masked_head"] and body["activation"] != "gelu":
        keys.refuse(f"hidden_act {published['hidden_act']!r} under a head that knows 'gelu' only")
    spec = EncoderConfig(**body, **heads)
    keys.finish()
    return spec


def spec_to_hf(spec: EncoderConfig, name: str, model_type: str) -> dict[str, Any]:
    """The inverse of `spec_from_hf`."""
    published: dict[str, Any] = {
        **bert_like.body_to_hf(spec, model_type),
        **bert_like.heads_to_hf(spec, name, classes=("ForMaskedLM", "Model")),
        "max_position_embeddings": spec.max_length + spec.position_offset,
        "pad_token_id": spec.position_offset - 1,
    }
    said = bert_like.same_heads(spec, spec_from_hf(published, name))
    refuse_unsaid(spec, dataclasses.replace(said, pair_head=False), published["architectures"][0])
    return published
