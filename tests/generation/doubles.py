"""A tiny decoder and a tiny encoder-decoder with random weights, for the tests of this room."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hllm_jax.generation.engine import Engine
from hllm_jax.generation.language_model import LanguageModel
from hllm_jax.generation.seq2seq import Seq2SeqModel
from hllm_jax.models.config import Execution
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.encoder_decoder import EncoderDecoder
from hllm_jax.models.layout import init_variables
from hllm_jax.models.spec import DecoderConfig, EncoderDecoderConfig
from hllm_jax.testing.tokenizer import ByteTokenizer

TINY = DecoderConfig(
    vocab_size=261,
    layers=2,
    embed=32,
    heads=4,
    kv_heads=2,
    mlp=48,
    max_length=64,
    rope_theta=100.0,
    init_std=0.3,
)


@functools.cache
def decoder(config: DecoderConfig = TINY, scan_layers: bool = False) -> tuple[Decoder, dict[str, Any]]:
    """The model and its variables; wide weights, so that the most probable token stands out."""
    model = Decoder(config, Execution(scan_layers=scan_layers))
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))


def tokenizer(stop_ids: tuple[int, ...] = ()) -> Any:
    """One token a byte, with these stop ids (none: every completion is as long as it may be)."""
    double = ByteTokenizer()
    double.stop_ids = stop_ids  # type: ignore[assignment]
    return double


def engine(stop_ids: tuple[int, ...] = (), config: DecoderConfig = TINY, **settings: Any) -> Engine:
    """An engine of the tiny model."""
    return Engine(*decoder(config), tokenizer(stop_ids), **settings)


def language_model(stop_ids: tuple[int, ...] = (), config: DecoderConfig = TINY) -> LanguageModel:
    """The tiny model as `hllm_jax.load` would give it."""
    return LanguageModel(*decoder(config), tokenizer(stop_ids))


SEQ2SEQ = EncoderDecoderConfig(
    vocab_size=261,
    layers=2,
    embed=32,
    heads=4,
    kv_heads=4,
    head_dim=8,
    mlp=48,
    max_length=64,
    relative_buckets=8,
    relative_distance=16,
    tie_embeddings=False,
    scale_logits=False,
    init="normal",
    init_std=0.4,
    decoder_start=0,
    stop_ids=(2,),
)


@functools.cache
def encoder_decoder(config: EncoderDecoderConfig = SEQ2SEQ) -> tuple[EncoderDecoder, dict[str, Any]]:
    """The model and its variables; they draw wide logits, so that the most probable token stands out."""
    model = EncoderDecoder(config, Execution())
    return model, nn.unbox(jax.jit(lambda: init_variables(model, jax.random.key(1)))())


def seq2seq_model(stop_ids: tuple[int, ...] = (), with_tokenizer: bool = True) -> Seq2SeqModel:
    """The tiny encoder-decoder as `hllm_jax.load` would give it."""
    return Seq2SeqModel(*encoder_decoder(), tokenizer(stop_ids) if with_tokenizer else None)
