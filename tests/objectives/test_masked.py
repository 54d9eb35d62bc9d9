"""Masked language models: the tokens' mean and the pair's mean each have their own denominator."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.data.objective import ObjectiveConfig
from hllm_jax.objectives import make_loss, masked_lm, mean
from hllm_jax.objectives.sums import Batch, prepared
from hllm_jax.testing.training import toy_layout
from hllm_jax.training import make_optimizer, make_train_step
from hllm_jax.training.config import OptimizerConfig, ScheduleConfig

VOCAB = 16


class Output(NamedTuple):
    """What an encoder gives."""

    logits: jax.Array
    pair_logits: jax.Array | None


class Guesser(nn.Module):
    """A table for the tokens and one for the pair, called like an encoder."""

    pairs: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
    ) -> Output:
        normal = nn.initializers.normal(1.0)
        boxed = nn.with_logical_partitioning(normal, ("vocab", None))
        table = self.param("table", boxed, (VOCAB, VOCAB), jnp.float32)
        pair = self.param("pair", boxed, (VOCAB, 2), jnp.float32)
        return Output(table[tokens], pair[tokens[:, 0]] if self.pairs else None)


def rows(count: int = 4, length: int = 6, seed: int = 0) -> dict[str, jax.Array]:
    """Sentence pairs with ragged weights; the last row is empty."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2, (count, length)).astype(np.float32)
    weights[-1] = 0
    return {
        "tokens": jnp.asarray(rng.integers(0, VOCAB, (count, length)), jnp.int32),
        "targets": jnp.asarray(rng.integers(0, VOCAB, (count, length)), jnp.int32),
        "weights": jnp.asarray(weights),
        "segment_ids": jnp.ones((count, length), jnp.int32),
        "positions": jnp.zeros((count, length), jnp.int32),
        "token_types": jnp.zeros((count, length), jnp.int32),
        "pair_labels": jnp.asarray(rng.integers(0, 2, count), jnp.int32),
        "pair_weights": jnp.asarray(np.arange(count) < count - 1, jnp.float32),
    }


def expected(variables: Any, batch: Batch) -> tuple[float, float]:
    """(mean over hidden tokens, mean over pairs), in NumPy."""
    table, pair = (
        np.asarray(nn.meta.unbox(variables)["params"][name], np.float64) for name in ("table", "pair")
    )

    def nll(logits: np.ndarray, target: int) -> float:
        return float(np.log(np.exp(logits).sum()) - logits[target])

    tokens, targets, weights = (np.asarray(batch[n]) for n in ("tokens", "targets", "weights"))
    costs = [
        (weights[i, j] * nll(table[tokens[i, j]], targets[i, j]))
        for i in range(len(tokens))
        for j in range(tokens.shape[1])
    ]
    labels, used = np.asarray(batch["pair_labels"]), np.asarray(batch["pair_weights"])
    pairs = [used[i] * nll(pair[tokens[i, 0]], labels[i]) for i in range(len(tokens))]
    return sum(costs) / weights.sum(), sum(pairs) / used.sum()


def variables_of(model: nn.Module) -> Any:
    return nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))


def test_the_loss_is_the_sum_of_two_means() -> None:
    model = Guesser()
    variables, batch = variables_of(model), rows()
    loss = masked_lm(model)
    means = mean(loss(variables, prepared(loss, batch), None))
    tokens, pairs = expected(variables, batch)
    assert float(means["loss"]) == pytest.approx(tokens + pairs, rel=1e-5)
    assert float(means["nll"]) == pytest.approx(tokens, rel=1e-5)
    assert float(means["pair_loss"]) == pytest.approx(pairs, rel=1e-5)
    assert 0 <= float(means["pair_accuracy"]) <= 1


def test_rows_without_pairs_have_the_tokens_mean() -> None:
    model = Guesser(pairs=False)
    variables = variables_of(model)
    batch = {name: values for name, values in rows().items() if not name.startswith(("pair", "token_types"))}
    means = mean(masked_lm(model)(variables, batch, None))
    assert float(means["loss"]) == pytest.approx(expected(variables, rows())[0], rel=1e-5)
    assert set(means) == {"loss", "accuracy"}


def test_pairs_need_a_head() -> None:
    model = Guesser(pairs=False)
    with pytest.raises(ValueError, match="need an encoder with a head for pairs"):
        masked_lm(model)(variables_of(model), rows(), None)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_any_split_of_the_batch_has_the_gradient_of_both_means(accumulation: int) -> None:
    """One SGD-like step (Adam's first update has the sign of the gradient) is compared through the loss and
    the norm of its gradient, both of which see the whole batch."""
    model, batch = Guesser(), rows(8)
    optimizer = make_optimizer(OptimizerConfig(clip_norm=None), ScheduleConfig(), 10)
    layout = toy_layout(model=model, optimizer=optimizer)
    state = layout.init(0)
    variables = state.variables
    tokens, pairs = expected(variables, batch)

    def total(params: Any) -> jax.Array:
        loss = masked_lm(model)
        return mean(loss({"params": params}, prepared(loss, batch), None))["loss"]

    gradient = jax.grad(total)(jax.tree.map(jnp.copy, variables["params"]))
    norm = math.sqrt(sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(gradient)))
    step = make_train_step(masked_lm(model), optimizer, layout, accumulation)
    _, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(tokens + pairs, rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert int(metrics["tokens"]) == 48


def test_make_loss_follows_the_section() -> None:
    assert type(make_loss(ObjectiveConfig(kind="masked_lm"), Guesser())).__name__ == "MaskedLM"
    assert callable(make_loss(ObjectiveConfig(kind="seq2seq"), Guesser()))
    assert callable(make_loss(ObjectiveConfig(), Guesser()))
