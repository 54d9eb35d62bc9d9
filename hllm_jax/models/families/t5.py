"""T5 (Raffel et al. 2020) 1.0 and 1.1 (gated, with a head of its own), and so mT5, FLAN-T5 and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.forms import Each, Matrix, Same
from hllm_jax.models.families.published import (
    ACTIVATIONS,
    ConfigRefused,
    Keys,
    activation_to_hf,
    refuse_unsaid,
)
from hllm_jax.models.families.table import Arrays, Row, Table, Tensors, row
from hllm_jax.models.spec import EncoderDecoderConfig

HF_TYPES = ("t5", "mt5")
GGUF_ARCHITECTURES = ("t5",)

#: Rows of pretraining; relative positions themselves have no end.
MAX_LENGTH = {"t5": 512, "mt5": 1024}

_PARTS = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    return tuple(row(f"{theirs}{t}.weight", f"{ours}/{o}/kernel", Matrix(1 + (t == "o"))) for t, o in _PARTS)


def _side(side: str) -> tuple[Row, ...]:
    theirs, ours = f"{side}.block.{{}}.layer.", f"{side}/layers_{{}}/"
    last = 2 if side == "decoder" else 1
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    mlp = f"{theirs}{last}.DenseReluDense."
    rows = (
        *_attention(f"{theirs}0.SelfAttention.", f"{ours}attention"),
        row(bias, f"{side}/relative/embedding", Same()),
        row(f"{theirs}0.layer_norm.weight", f"{ours}attention_norm/scale", Same()),
        row(
            (f"{mlp}wi_0.weight", f"{mlp}wi_1.weight"),
            (f"{ours}mlp/gate/kernel", f"{ours}mlp/up/kernel"),
            Each(Matrix()),
        ),
        row(f"{mlp}wi.weight", f"{ours}mlp/up/kernel", Matrix()),
        row(f"{mlp}wo.weight", f"{ours}mlp/down/kernel", Matrix()),
        row(f"{theirs}{last}.layer_norm.weight", f"{ours}mlp_norm/scale", Same()),
        row(f"{side}.final_layer_norm.weight", f"{side}/final_norm/scale", Same()),
    )
    if side == "encoder":
        return rows
    return (
        *rows,
        *_attention(f"{theirs}1.EncDecAttention.", f"{ours}cross_attention"),
        row(f"{theirs}1.layer_norm.weight", f"{ours}cross_norm/scale", Same()),
    )


HF_NAMES = Table(
    rows=(
        row("shared.weight", "embed/embedding", Same()),
        *_side("encoder"),
        *_side("decoder"),
        row("lm_head.weight", "head/kernel", Matrix()),
    ),
    # Cross attention has no positions; old checkpoints hold a table for it that is not read.
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    tied=("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
)


def _gguf_side(short: str, side: str) -> tuple[Row, ...]:
    theirs, ours = f"{short}.blk.{{}}.", f"{side}/layers_{{}}/"
    norms = {"attn": "attention", "ffn": "mlp"}
    rows = (
        *_attention(f"{theirs}attn_", f"{ours}attention"),
        row(f"{short}.blk.0.attn_rel_b.weight", f"{side}/relative/embedding", Same()),
        *(row(f"{theirs}{t}_norm.weight", f"{ours}{o}_norm/scale", Same()) for t, o in norms.items()),
        *(row(f"{theirs}ffn_{n}.weight", f"{ours}mlp/{n}/kernel", Matrix()) for n in ("gate", "up", "down")),
        row(f"{short}.output_norm.weight", f"{side}/final_norm/scale", Same()),
    )
    if side == "encoder":
        return rows
    return (
        *rows,
        *_attention(f"{theirs}cross_attn_", f"{ours}cross_attention"),
        row(f"{theirs}cross_attn_norm.weight", f"{ours}cross_norm/scale", Same()),
    )


GGUF_NAMES = Table(
    rows=(
        row("token_embd.weight", "embed/embedding", Same()),
        *_gguf_side("enc", "encoder"),
        *_gguf_side("dec", "decoder"),
        row("output.weight", "head/kernel", Matrix()),
    ),
    ignored=("dec.blk.{}.cross_attn_rel_b.weight",),
    tied=("output.weight",),
)


def _size(layers: int, embed: int, heads: int, mlp: int, **more: Any) -> EncoderDecoderConfig:
    more.setdefault("head_dim", 64)
    return EncoderDecoderConfig(layers=layers, embed=embed, heads=heads, kv_heads=heads, mlp=mlp, **more)


_V1: dict[str, Any] = {"dropout": 0.1, "attention_dropout": 0.1, "mlp_dropout": 0.1}
#: Pretrained without dropout.
_V1_1: dict[str, Any] = {
    "activation": "gelu_tanh",
    "gated": True,
    "tie_embeddings": False,
    "scale_logits": False,
}
_SIZES = {
    "small": (8, 512, 6, 1024),
    "base": (12, 768, 12, 2048),
    "large": (24, 1024, 16, 2816),
    "xl": (24, 2048, 32, 5120),
    "xxl": (24, 4096, 64, 10240),
}

PRESETS: dict[str, EncoderDecoderConfig] = {
    "t5-small": _size(6, 512, 8, 2048, **_V1),
    "t5-base": _size(12, 768, 12, 3072, **_V1),
    "t5-large": _size(24, 1024, 16, 4096, **_V1),
    "t5-3b": _size(24, 1024, 32, 16384, head_dim=128, **_V1),
    "t5-11b": _size(24, 1024, 128, 65536, head_dim=128, **_V1),
    **{f"t5-v1.1-{name}": _size(*size, **_V1_1) for name, size in _SIZES.items()},
    **{
        f"mt5-{name}": _size(*size, vocab_size=250112, max_length=MAX_LENGTH["mt5"], **_V1_1)
        for name, size in _SIZES.items()
    },
}


def from_hf(published: Mapping[str, Any]) -> EncoderDecoderConfig:
    """config.json of a `T5ForConditionalGeneration` or `MT5ForConditionalGeneration` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    # Not read: what follows from feed_forward_proj, and what concerns training or other heads.
    silent = ("is_gated_act", "dense_act_fn", "initializer_factor", "classifier_dropout", "output_past")
    keys = Keys(published, silent=(*silent, "task_specific_params", "tokenizer_class"))
    kind = published.get("model_type", HF_TYPES[0])
    gated, _, activation = keys.take("feed_forward_proj", "relu").rpartition("-")
    if gated == "gated" and activation == "gelu":
        activation = "gelu_new"
    if gated not in ("", "gated") or activation not in ACTIVATIONS:
        keys.refuse(f"feed_forward_proj {published['feed_forward_proj']!r} is not implemented")
    # transformers 4 says by the tie whether logits are scaled, and 5, which calls every T5 tied, beside it.
    scaled = keys.take("scale_decoder_outputs", keys.take("tie_word_embeddings", True) and kind == "t5")
    keys.only("is_encoder_decoder", True)
    layers, heads = keys.take("num_layers"), keys.take("num_heads")
    decoder_layers = keys.take("num_decoder_layers", layers)
    dropout = keys.take("dropout_rate", 0.1)
    spec = EncoderDecoderConfig(
        vocab_size=keys.take("vocab_size"),
        layers=layers,
        decoder_layers=None if decoder_layers == layers else decoder_layers,
        embed=keys.take("d_model"),
        heads=heads,
        kv_heads=heads,
        head_dim=keys.take("d_kv"),
        mlp=keys.take("d_ff"),
        max_length=keys.take("n_positions", MAX_LENGTH.get(kind, 512)),
        norm_eps=keys.take("layer_norm_epsilon", 1e-6),
        relative_buckets=keys.take("relative_attention_num_buckets", 32),
        relative_distance=keys.take("relative_attention_max_distance", 128),
        activation=ACTIVATIONS.get(activation, "relu"),
        gated=gated == "gated",
        dropout=dropout,
        attention_dropout=dropout,
        mlp_dropout=dropout,
        tie_embeddings=scaled,
        scale_logits=scaled,
        decoder_start=keys.take("decoder_start_token_id", *keys.ids("pad_token_id", 0)),
        stop_ids=keys.ids("eos_token_id", 1),
    )
    keys.finish()
    return spec


def to_hf(spec: EncoderDecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `T5ForConditionalGeneration`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    activation = activation_to_hf(spec.activation)
    if spec.gated:  # where gelu means the approximation
        activation = "gated-" + activation.removesuffix("_new")
    published = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": HF_TYPES[0],
        "is_encoder_decoder": True,
        "vocab_size": spec.vocab_size,
        "num_layers": spec.layers,
        "num_decoder_layers": spec.depth,
        "d_model": spec.embed,
        "num_heads": spec.heads,
        "d_kv": spec.head_size,
        "d_ff": spec.mlp_size,
        "n_positions": spec.max_length,
        "layer_norm_epsilon": spec.norm_eps,
        "relative_attention_num_buckets": spec.relative_buckets,
        "relative_attention_max_distance": spec.relative_distance,
        "feed_forward_proj": activation,
        "dropout_rate": spec.dropout,
        "tie_word_embeddings": spec.scale_logits,
        "decoder_start_token_id": spec.decoder_start,
        "pad_token_id": spec.decoder_start,
        "eos_token_id": spec.stop_ids[0] if len(spec.stop_ids) == 1 else list(spec.stop_ids),
    }
    refuse_unsaid(spec, from_hf(published), "T5ForConditionalGeneration")
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> EncoderDecoderConfig:
    """GGUF metadata (keys `t5.*`) to our spec; the names of the tensors say what is gated and tied.

    llama.cpp does not scale the logits of T5 1.0. They are scaled here, as its authors do.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(metadata, prefix="t5.", where="the GGUF file")
    layers, heads, embed = (keys.take(k) for k in ("block_count", "attention.head_count", "embedding_length"))
    decoder_layers = keys.take("decoder_block_count", layers)
    shapes = tensors.shapes
    gated, tied = "enc.blk.0.ffn_gate.weight" in shapes, "output.weight" not in shapes
    end = metadata.get("tokenizer.ggml.eos_token_id", 1)
    keys.only("attention.head_count_kv", heads)
    spec = EncoderDecoderConfig(
        vocab_size=keys.take("vocab_size", shapes.get("token_embd.weight", (0,))[0]),
        layers=layers,
        decoder_layers=None if decoder_layers == layers else decoder_layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        head_dim=keys.take("attention.key_length", embed // max(heads, 1)),
        mlp=keys.take("feed_forward_length"),
        max_length=keys.take("context_length", MAX_LENGTH["t5"]),
        norm_eps=llama_like.single(keys.take("attention.layer_norm_rms_epsilon", 1e-6)),
        relative_buckets=keys.take("attention.relative_buckets_count", 32),
        activation="gelu_tanh" if gated else "relu",
        gated=gated,
        tie_embeddings=tied,
        scale_logits=tied and not gated,
        decoder_start=keys.take("decoder_start_token_id", 0),
        stop_ids=(end,),
    )
    keys.finish()
    return spec


def to_gguf(spec: EncoderDecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `t5` does not, such as a decoder that is the deeper side.
    """
    if spec.depth > spec.layers:
        raise ConfigRefused(
            f"decoder_layers is {spec.depth}, layers {spec.layers}: llama.cpp's t5 runs no decoder that is "
            "deeper than its encoder"
        )
    values = {
        "block_count": spec.layers,
        "decoder_block_count": spec.depth,
        "context_length": spec.max_length,
        "embedding_length": spec.embed,
        "feed_forward_length": spec.mlp_size,
        "attention.head_count": spec.heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
        "attention.layer_norm_epsilon": spec.norm_eps,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "attention.relative_buckets_count": spec.relative_buckets,
        "decoder_start_token_id": spec.decoder_start,
        "vocab_size": spec.vocab_size,
    }
    metadata = {f"t5.{key}": value for key, value in values.items()}
    names = [] if spec.tie_embeddings else ["output.weight"]
    names += ["enc.blk.0.ffn_gate.weight"] if spec.gated else []
    told = Arrays("the GGUF file", {name: np.empty(0, np.float32) for name in names})
    # What ends a text is the tokenizer's part of the file.
    end = {"tokenizer.ggml.eos_token_id": spec.stop_ids[0]} if spec.stop_ids else {}
    refuse_unsaid(spec, from_gguf(metadata | end, told), "llama.cpp's t5")
    return metadata
