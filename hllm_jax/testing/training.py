"""A toy language model, ragged batches and a small run, for tests of steps, loops and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.config import config, load_config
from hllm_jax.nn.axes import constrain, parameter
from hllm_jax.objectives.language_model import causal_lm
from hllm_jax.parallel.config import DistributedConfig, MeshConfig, Strategy
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.mesh import make_mesh
from hllm_jax.parallel.rules import make_rules
from hllm_jax.parallel.state import Predicate, TrainState, everything
from hllm_jax.training.config import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from hllm_jax.training.optimizers import Optimizer, make_optimizer
from hllm_jax.training.step import TrainStep, make_train_step

VOCAB, EMBED = 64, 32


class Bigram(nn.Module):
    """Predicts the next token from this one alone; called like a decoder, compiles in no time."""

    vocab_size: int = VOCAB
    embed: int = EMBED
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, None]:
        """tokens `[B, L]` -> logits `[B, L, V]`, and no cache."""
        del segment_ids, positions
        normal, ones = nn.initializers.normal(0.5), nn.initializers.ones
        table = self.weight("embedding", normal, vocab=self.vocab_size, embed=self.embed)
        kernel = self.weight("kernel", normal, embed=self.embed, vocab=self.vocab_size)
        scale = self.weight("scale", ones, embed=self.embed)
        x = constrain(jnp.take(table, tokens, axis=0), "batch", "length", "act_embed")
        x = nn.Dropout(self.dropout)(jnp.tanh(x) * scale.reshape(1, 1, -1), deterministic)
        return constrain(x @ kernel, "batch", "length", "act_vocab"), None

    def weight(self, name: str, init: Any, **axes: int) -> jax.Array:
        """A float32 parameter whose axes have these names and sizes."""
        return parameter(self, name, init, tuple(axes.values()), tuple(axes), jnp.float32)


class ToyBatches:
    """`batches[n]`: ragged rows, a pure function of (seed, n); the last row of every batch is all padding.

    Args:
        batch_size: rows.
        length: tokens a row.
        seed: of everything.
        poisoned: batches whose weights hold an infinity.
    """

    def __init__(
        self, batch_size: int = 8, length: int = 16, seed: int = 0, poisoned: tuple[int, ...] = ()
    ) -> None:
        self.batch_size, self.length, self.seed, self.poisoned = batch_size, length, seed, poisoned

    @property
    def fingerprint(self) -> str:
        """Of the batches."""
        return f"toy-{self.batch_size}-{self.length}-{self.seed}"

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        """Batch n."""
        rng = np.random.default_rng((self.seed, n))
        shape = (self.batch_size, self.length)
        tokens = rng.integers(0, VOCAB, shape).astype(np.int32)
        ends = rng.integers(1, self.length + 1, self.batch_size)
        ends[-1] = 0
        held = np.arange(self.length)[None, :] < ends[:, None]
        weights = (held * rng.integers(0, 2, shape)).astype(np.float32)
        if n in self.poisoned:
            weights[0, 0] = np.inf
        return {
            "tokens": tokens,
            "targets": (7 * tokens + 3).astype(np.int32) % VOCAB,
            "weights": weights,
            "segment_ids": held.astype(np.int32),
            "positions": np.where(held, np.arange(self.length)[None, :], 0).astype(np.int32),
        }


@config
class ToyConfig:
    """The sections of a recipe that a run and its loop read."""

    recipe: str = "toy"
    run: RunConfig
    train: TrainConfig = TrainConfig(steps=8, batch_size=8, sequence_length=16)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig(peak=0.03)
    checkpoint: CheckpointConfig = CheckpointConfig(every=4)
    eval: EvalConfig = EvalConfig(every=0)
    log: LogConfig = LogConfig(every=1, progress=False)
    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = "ddp"
    distributed: DistributedConfig = DistributedConfig()


def toy_config(folder: Path, *overrides: str) -> ToyConfig:
    """A config whose run folder is `folder`."""
    return load_config(ToyConfig, overrides=(f"run.dir={folder}", *overrides))


def toy_layout(
    strategy: Strategy = "ddp",
    devices: int | None = 1,
    optimizer: Optimizer | None = None,
    trainable: Predicate = everything,
    mesh: MeshConfig | None = None,
    model: nn.Module | None = None,
) -> Layout:
    """The layout of a Bigram state on the first `devices` devices."""
    optimizer = optimizer or make_optimizer(OptimizerConfig(), ScheduleConfig(peak=0.03), 100)
    chosen = make_mesh(mesh, strategy, jax.devices()[:devices])
    return Layout(chosen, make_rules(strategy), model or Bigram(), optimizer, trainable)


def toy_step(layout: Layout, accumulation: int = 1, dropout: float = 0.0) -> TrainStep:
    """The train step of a Bigram."""
    optimizer: Any = layout.optimizer
    return make_train_step(causal_lm(Bigram(dropout=dropout)), optimizer, layout, accumulation)


def toy_train(settings: ToyConfig, batches: ToyBatches | None = None, devices: int = 1) -> TrainState:
    """What a recipe does, with the toy: start, restore or init, train, save."""
    from hllm_jax.training.hooks import save
    from hllm_jax.training.loop import train
    from hllm_jax.training.run import Run

    run = Run.start(settings)
    steps = settings.train.steps or 8
    batches = batches or ToyBatches(
        settings.train.batch_size, settings.train.sequence_length, settings.run.seed
    )
    optimizer = make_optimizer(settings.optimizer, settings.schedule, steps)
    layout = toy_layout(settings.strategy, devices, optimizer, mesh=settings.mesh)
    run.facts = {"data": batches.fingerprint}
    state = run.restore(layout) or layout.init(settings.run.seed)
    step = toy_step(layout, settings.train.accumulation)
    hooks = [save(run, settings.checkpoint.every)]
    return train(run, state, step, batches, layout, steps, hooks, 6.0 * VOCAB * EMBED)
