"""The Transformer of 2017 (Vaswani et al.) in the format of Marian, which is built like it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families.forms import Matrix, Same, Vector
from hllm_jax.models.families.published import Keys, activation_to_hf, refuse_unsaid
from hllm_jax.models.families.table import Row, Table, row
from hllm_jax.models.spec import EncoderDecoderConfig

HF_TYPES = ("marian",)

#: See `bert.HF_HEADS`: Marian's own models have a bias of the logits, which the paper's do not.
HF_HEADS = {"final_logits_bias": "logit_bias"}


def _layer(theirs: str, ours: str) -> tuple[Row, ...]:
    looks = {"self_attn": "attention", "encoder_attn": "cross_attention"}
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    norms = {
        "self_attn_layer_norm": "attention_norm",
        "encoder_attn_layer_norm": "cross_norm",
        "final_layer_norm": "mlp_norm",
    }
    matrices = {
        **{f"{look}.{t}": f"{kind}/{o}" for look, kind in looks.items() for t, o in parts.items()},
        "fc1": "mlp/up",
        "fc2": "mlp/down",
    }
    return (
        *(
            row(f"{theirs}{t}.weight", f"{ours}{o}/kernel", Matrix(1 + t.endswith("out_proj")))
            for t, o in matrices.items()
        ),
        *(row(f"{theirs}{t}.bias", f"{ours}{o}/bias", Vector()) for t, o in matrices.items()),
        *(row(f"{theirs}{t}.weight", f"{ours}{o}/scale", Same()) for t, o in norms.items()),
        *(row(f"{theirs}{t}.bias", f"{ours}{o}/bias", Same()) for t, o in norms.items()),
    )


HF_NAMES = Table(
    rows=(
        row("model.shared.weight", "embed/embedding", Same()),
        *_layer("model.encoder.layers.{}.", "encoder/layers_{}/"),
        *_layer("model.decoder.layers.{}.", "decoder/layers_{}/"),
        row("final_logits_bias", "logit_bias", Same(lead=1)),
    ),
    # Sinusoids, which follow from the config.
    ignored=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
    tied=("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
)


def _size(embed: int, heads: int, mlp: int, dropout: float) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(
        vocab_size=37000,
        layers=6,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=mlp,
        max_length=1024,
        embed_scale=math.sqrt(embed),
        dropout=dropout,
        **_BUILT,
    )


#: What all models of this format have in common.
_BUILT: dict[str, Any] = {
    "norm": "layer",
    "norm_eps": 1e-5,
    "norm_placement": "post",
    "position": "sinusoidal",
    "attention_scale": None,
    "scale_logits": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}

#: Table 3, with the English-German vocabulary of section 5.1.
PRESETS: dict[str, EncoderDecoderConfig] = {
    "transformer-base": _size(512, 8, 2048, dropout=0.1),
    "transformer-big": _size(1024, 16, 4096, dropout=0.3),
}


def from_hf(published: Mapping[str, Any]) -> EncoderDecoderConfig:
    """config.json of a `MarianMTModel` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    # Not read: training, defaults of generation, and what older versions wrote without reading it.
    silent = ("add_bias_logits", "bad_words_ids", "classif_dropout", "classifier_dropout", "init_std")
    generation = (
        "forced_eos_token_id",
        "max_length",
        "num_beams",
        "num_hidden_layers",
        "num_attention_heads",
    )
    keys = Keys(published, silent=(*silent, *generation, "decoder_layerdrop", "encoder_layerdrop"))
    vocab_size, embed = keys.take("vocab_size"), keys.take("d_model")
    layers, heads = keys.take("encoder_layers"), keys.take("encoder_attention_heads")
    decoder_layers, mlp = keys.take("decoder_layers", layers), keys.take("encoder_ffn_dim")
    keys.only("decoder_vocab_size", vocab_size)
    keys.only("decoder_attention_heads", heads)
    keys.only("decoder_ffn_dim", mlp)
    for key in ("share_encoder_decoder_embeddings", "tie_word_embeddings", "static_position_embeddings"):
        keys.only(key, True)
    keys.only("is_encoder_decoder", True)
    for key in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):
        keys.only(key, False)
    spec = EncoderDecoderConfig(
        vocab_size=vocab_size,
        layers=layers,
        decoder_layers=None if decoder_layers == layers else decoder_layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=mlp,
        max_length=keys.take("max_position_embeddings", 1024),
        activation=keys.activation("activation_function", "gelu"),
        embed_scale=math.sqrt(embed) if keys.take("scale_embedding", False) else None,
        dropout=keys.take("dropout", 0.1),
        attention_dropout=keys.take("attention_dropout", 0.0),
        mlp_dropout=keys.take("activation_dropout", 0.0),
        decoder_start=keys.take("decoder_start_token_id", *keys.ids("pad_token_id", 58100)),
        stop_ids=keys.ids("eos_token_id", 0),
        **_BUILT,
    )
    keys.finish()
    return spec


def to_hf(spec: EncoderDecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `MarianMTModel`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    activation = activation_to_hf(spec.activation)
    published = {
        "architectures": ["MarianMTModel"],
        "model_type": HF_TYPES[0],
        "is_encoder_decoder": True,
        "vocab_size": spec.vocab_size,
        "d_model": spec.embed,
        "max_position_embeddings": spec.max_length,
        "activation_function": "swish" if activation == "silu" else activation,
        "scale_embedding": spec.embed_scale is not None,
        "tie_word_embeddings": True,
        "dropout": spec.dropout,
        "attention_dropout": spec.attention_dropout,
        "activation_dropout": spec.mlp_dropout,
        "init_std": spec.init_std,
        "decoder_start_token_id": spec.decoder_start,
        "pad_token_id": spec.decoder_start,
        "eos_token_id": spec.stop_ids[0] if len(spec.stop_ids) == 1 else list(spec.stop_ids),
        "forced_eos_token_id": spec.stop_ids[0],  # at the limit; its own default is another model's id
    }
    for side, layers in (("encoder", spec.layers), ("decoder", spec.depth)):
        published |= {
            f"{side}_layers": layers,
            f"{side}_attention_heads": spec.heads,
            f"{side}_ffn_dim": spec.mlp_size,
        }
    said = dataclasses.replace(from_hf(published), logit_bias=spec.logit_bias)
    refuse_unsaid(spec, said, "MarianMTModel")
    return published
