"""Heads for tasks on an encoder: a class of a text, a class of every token, a span that is an answer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.models.block import dtypes
from hllm_jax.models.config import Execution
from hllm_jax.models.spec import EncoderConfig
from hllm_jax.models.task import TaskConfig
from hllm_jax.nn.linear import Linear


class SequenceClassifier(nn.Module):
    """`out(pooled)` (Devlin et al. 2019, section 4.1), or `out(tanh(dense(hidden[first])))` (RoBERTa).

    Attributes:
        config: the architecture, with its task.
        execution: the computation, with its dtype resolved.
    """

    config: EncoderConfig
    execution: Execution

    def setup(self) -> None:
        task = task_of(self.config)
        if task.dense:
            D = self.config.embed
            settings: dict[str, Any] = {"std": self.config.init_std, **dtypes(self.execution)}
            self.dense = Linear((D,), (D,), ("embed", "mlp"), use_bias=True, **settings)
        self.out = _projection(self.config, self.execution, task)
        self.dropout = nn.Dropout(_rate(self.config, task))

    def __call__(self, hidden: jax.Array, pooled: jax.Array | None, deterministic: bool) -> jax.Array:
        """hidden `[B, L, D]`, pooled `[B, D]` -> float32 `[B, labels]`."""
        if task_of(self.config).dense:
            pooled = jnp.tanh(self.dense(self.dropout(hidden[:, 0], deterministic)))
        assert pooled is not None, "EncoderConfig refuses this"
        return self.out(self.dropout(pooled, deterministic))


class TokenClassifier(nn.Module):
    """`out(hidden)` of every token (Devlin et al. 2019, section 5.3). Attributes as `SequenceClassifier`."""

    config: EncoderConfig
    execution: Execution

    def setup(self) -> None:
        task = task_of(self.config)
        self.out = _projection(self.config, self.execution, task)
        self.dropout = nn.Dropout(_rate(self.config, task))

    def __call__(self, hidden: jax.Array, pooled: jax.Array | None, deterministic: bool) -> jax.Array:
        """hidden `[B, L, D]` -> float32 `[B, L, labels]`."""
        return self.out(self.dropout(hidden, deterministic))


class SpanQA(nn.Module):
    """`out(hidden)`: how well an answer begins, and ends, at each token (Devlin et al. 2019, section 4.2).

    Attributes as `SequenceClassifier`.
    """

    config: EncoderConfig
    execution: Execution

    def setup(self) -> None:
        self.out = _projection(self.config, self.execution, task_of(self.config))

    def __call__(self, hidden: jax.Array, pooled: jax.Array | None, deterministic: bool) -> jax.Array:
        """hidden `[B, L, D]` -> float32 `[B, L, 2]`, logits of the first and of the last token."""
        return self.out(hidden)


HEADS: dict[str, Any] = {"sequence": SequenceClassifier, "tokens": TokenClassifier, "span": SpanQA}


def task_of(config: EncoderConfig) -> TaskConfig:
    """The task of an encoder that has one."""
    assert config.task is not None
    return config.task


def _projection(config: EncoderConfig, execution: Execution, task: TaskConfig) -> Linear:
    return Linear(
        (config.embed,),
        (task.outputs,),
        ("embed", "classes"),
        config.init_std,
        use_bias=True,
        result_dtype=jnp.float32,
        **dtypes(execution),
    )


def _rate(config: EncoderConfig, task: TaskConfig) -> float:
    return config.dropout if task.dropout is None else task.dropout
