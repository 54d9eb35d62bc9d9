"""A tiny decoder for tests: every size differs from every other, so that a mixed-up axis is an error."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hllm_jax.models.config import Execution
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.layout import parameter_shapes, stack_layers
from hllm_jax.models.spec import DecoderConfig, Spec


def tiny_config(**changes: Any) -> DecoderConfig:
    """Grouped heads whose width is not embed / heads; fields of `DecoderConfig` may be changed."""
    sizes = DecoderConfig(
        vocab_size=67, layers=2, embed=24, heads=4, kv_heads=2, head_dim=10, mlp=40, max_length=64
    )
    return dataclasses.replace(sizes, **changes)


def tiny_model(
    config: DecoderConfig | None = None,
    seed: int = 0,
    **execution: Any,
) -> tuple[Decoder, dict[str, Any]]:
    """A float32 decoder and random parameters (the tree under `params`, NumPy).

    The parameters are larger than those of an initialisation and the norms are no identity, so that every
    mistake shows in the logits; they are drawn without compiling anything.

    Args:
        config: `tiny_config()` by default.
        seed: of the parameters; the same for either layout.
        execution: fields of `Execution`.
    """
    config = config or tiny_config()
    model = Decoder(config, dataclasses.replace(Execution(dtype="float32"), **execution))
    params = draw_params(config, seed)
    if model.execution.scan_layers:
        params = stack_layers(params, len(config.attention_pattern))
    return model, params


@functools.lru_cache(32)
def compiled(model: nn.Module, method: str = "__call__") -> Callable[..., Any]:
    """`model.apply` of one method as a compiled function of variables and arrays.

    One program for each shape: without it a test compiles every operation of the model by itself. It is
    traced once, so that what is patched later is not seen. `deterministic` is static and given by name.
    """
    return jax.jit(functools.partial(model.apply, method=method), static_argnames="deterministic")


def draw_params(config: Spec, seed: int = 0) -> dict[str, Any]:
    """Random parameters (the tree under `params`, NumPy, unrolled) of any architecture; see `tiny_model`."""
    rng = np.random.default_rng(seed)
    return unflatten_dict(
        {
            tuple(path.split("/")): (rng.normal(size=shape) * 0.2 + path.endswith("scale")).astype(np.float32)
            for path, shape in parameter_shapes(config).items()
        }
    )


def random_tokens(config: DecoderConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """int32 `[batch, length]`, uniform over the vocabulary."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length)).astype(np.int32)
