"""A tiny decoder for tests: every size differs from every other, so that a mixed-up axis is an error."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.models.config import DecoderConfig, Execution
from hllm_jax.models.decoder import Decoder


def tiny_config(**changes: Any) -> DecoderConfig:
    """Grouped heads whose width is not embed / heads; fields of `DecoderConfig` may be changed."""
    sizes = DecoderConfig(
        vocab_size=67,
        layers=2,
        embed=24,
        heads=4,
        kv_heads=2,
        head_dim=10,
        mlp=40,
        max_length=64,
        init_std=0.2,
    )
    return dataclasses.replace(sizes, **changes)


def tiny_model(
    config: DecoderConfig | None = None,
    seed: int = 0,
    **execution: Any,
) -> tuple[Decoder, dict[str, Any]]:
    """A float32 decoder and random parameters (the tree under `params`).

    Args:
        config: `tiny_config()` by default.
        seed: of the parameters.
        execution: fields of `Execution`.
    """
    model = Decoder(config or tiny_config(), Execution(**{"dtype": "float32", **execution}))
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))
    return model, nn.unbox(variables["params"])


def random_tokens(config: DecoderConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """int32 `[batch, length]`, uniform over the vocabulary."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length)).astype(np.int32)
