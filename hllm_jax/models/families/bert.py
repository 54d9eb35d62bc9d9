"""BERT (Devlin et al. 2019), and what is only a size of it: MiniLM (Wang et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hllm_jax.models.families import bert_like
from hllm_jax.models.families.forms import Same
from hllm_jax.models.families.llama_like import single
from hllm_jax.models.families.published import ConfigRefused, Keys, refuse_unsaid
from hllm_jax.models.families.table import Arrays, Row, Table, Tensors, row
from hllm_jax.models.spec import EncoderConfig

HF_TYPES = ("bert",)
GGUF_ARCHITECTURES = ("bert",)

#: Published tensor -> the head that its presence shows. Files often hold more heads than their class has.
HF_HEADS = {
    "cls.predictions.transform.dense.weight": "masked_head",
    "bert.pooler.dense.weight": "pooler",
    "cls.seq_relationship.weight": "pair_head",
}

HF_NAMES = Table(
    rows=(
        *bert_like.embedding_rows("bert."),
        *bert_like.layer_rows("bert."),
        *bert_like.linear("bert.pooler.dense", "pool"),
        *bert_like.linear("cls.predictions.transform.dense", "masked_dense"),
        *bert_like.norm("cls.predictions.transform.LayerNorm", "masked_norm"),
        row("cls.predictions.bias", "masked_bias", Same()),
        *bert_like.linear("cls.seq_relationship", "pair"),
        *bert_like.linear("classifier", "sequence_head/out"),
        *bert_like.linear("classifier", "tokens_head/out"),
        *bert_like.linear("qa_outputs", "span_head/out"),
    ),
    ignored=("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"),
    tied=("cls.predictions.decoder.weight",),
    prefix="bert.",
    copies=(("cls.predictions.decoder.bias", "cls.predictions.bias"),),
    older=bert_like.OLDER,
)


def _gguf_rows() -> tuple[Row, ...]:
    theirs, ours = "blk.{}.", "layers_{}/"
    names = (("attn_q", "attention/query"), ("attn_k", "attention/key"), ("attn_v", "attention/value"))
    names += (("ffn_up", "mlp/up"), ("ffn_down", "mlp/down"))
    return (
        row("token_embd.weight", "embed/embedding", Same()),
        row("position_embd.weight", "position/embedding", Same()),
        row("token_types.weight", "token_type/embedding", Same()),
        *bert_like.norm("token_embd_norm", "embed_norm"),
        *(each for t, o in names for each in bert_like.linear(theirs + t, ours + o)),
        *bert_like.linear(f"{theirs}attn_output", f"{ours}attention/out", inputs=2),
        *bert_like.norm(f"{theirs}attn_output_norm", f"{ours}attention_norm"),
        *bert_like.norm(f"{theirs}layer_output_norm", f"{ours}mlp_norm"),
    )


GGUF_NAMES = Table(rows=_gguf_rows())


def _size(layers: int, embed: int, heads: int, vocab_size: int, **more: Any) -> EncoderConfig:
    sizes: dict[str, Any] = {"layers": layers, "embed": embed, "heads": heads, "kv_heads": heads}
    dropout = {"dropout": 0.1, "attention_dropout": 0.1}
    return EncoderConfig(**sizes, mlp=4 * embed, vocab_size=vocab_size, **dropout, **more)


PRESETS: dict[str, EncoderConfig] = {
    "bert-base-uncased": _size(12, 768, 12, 30522),
    "bert-large-uncased": _size(24, 1024, 16, 30522),
    "bert-base-cased": _size(12, 768, 12, 28996),
    "bert-large-cased": _size(24, 1024, 16, 28996),
    "bert-base-chinese": _size(12, 768, 12, 21128),
    "bert-base-multilingual-cased": _size(12, 768, 12, 119547),
    "minilm-l6-h384-uncased": _size(6, 384, 12, 30522, masked_head=False, pair_head=False),
    "minilm-l12-h384-uncased": _size(12, 384, 12, 30522, masked_head=False, pair_head=False),
}


def from_hf(published: Mapping[str, Any]) -> EncoderConfig:
    """config.json of a model of BERT, with the heads of the class that it names.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the output.
    """
    keys = Keys(published, bert_like.SILENT)
    spec = EncoderConfig(**bert_like.body_from_hf(keys), **bert_like.heads_from_hf(published, keys, "Bert"))
    keys.finish()
    return spec


def to_hf(spec: EncoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of the class of BERT that has its heads; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what BERT does not.
    """
    published: dict[str, Any] = {
        **bert_like.body_to_hf(spec, HF_TYPES[0]),
        **bert_like.heads_to_hf(spec, "Bert"),
    }
    refuse_unsaid(spec, bert_like.same_heads(spec, from_hf(published)), published["architectures"][0])
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> EncoderConfig:
    """GGUF metadata (keys `bert.*`) to our spec. Such files hold the body alone, and of RoBERTa's table of
    positions only what comes after padding.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the output.
    """
    keys = Keys(metadata, prefix="bert.", where="the GGUF file")
    keys.only("attention.causal", False)
    heads = keys.take("attention.head_count")
    spec = EncoderConfig(
        vocab_size=keys.take("vocab_size", tensors.shapes.get("token_embd.weight", (0,))[0]),
        layers=keys.take("block_count"),
        embed=keys.take("embedding_length"),
        heads=heads,
        kv_heads=heads,
        mlp=keys.take("feed_forward_length"),
        max_length=keys.take("context_length"),
        # The file holds float32; the shortest decimal that means the same float32 is what was written there.
        norm_eps=single(keys.take("attention.layer_norm_epsilon")),
        token_types=tensors.shapes.get("token_types.weight", (0,))[0],
        masked_head=False,
        pooler=False,
        pair_head=False,
    )
    keys.finish()
    return spec


def to_gguf(spec: EncoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `bert` does not, a head for example, or no token types.
    """
    if not spec.token_types:
        raise ConfigRefused("token_types is 0, and llama.cpp's bert loads no model without them")
    values: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "block_count": spec.layers,
        "context_length": spec.max_length,
        "embedding_length": spec.embed,
        "feed_forward_length": spec.mlp_size,
        "attention.head_count": spec.heads,
        "attention.layer_norm_epsilon": spec.norm_eps,
        "attention.causal": False,
    }
    metadata = {f"bert.{key}": value for key, value in values.items()}
    # llama.cpp expects as many rows in the table as this key says, which stands among the tokenizer's.
    metadata |= {"tokenizer.ggml.token_type_count": spec.token_types}
    held = Arrays("the spec", {"token_types.weight": np.empty((spec.token_types, spec.embed), np.float32)})
    refuse_unsaid(spec, from_gguf(metadata, held), "llama.cpp's bert")
    return metadata
