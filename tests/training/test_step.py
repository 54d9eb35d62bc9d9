"""The train step: any split of a batch is the big batch; nothing recompiles, leaks or explodes."""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hllm_jax.objectives import causal_lm, mean
from hllm_jax.parallel import matching
from hllm_jax.testing.models import tiny_config, tiny_model
from hllm_jax.testing.training import Bigram, ToyBatches, toy_layout, toy_step
from hllm_jax.training import (
    OptimizerConfig,
    ScheduleConfig,
    TrainState,
    make_eval_step,
    make_optimizer,
    make_train_step,
)


def run(layout: Any, step: Any, batches: ToyBatches, count: int) -> tuple[TrainState, list[dict[str, float]]]:
    state, found = layout.init(0), []
    for n in range(count):
        state, metrics = step(state, layout.put(batches[n]))
        found.append({name: float(value) for name, value in metrics.items()})
    return state, found


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Plain SGD-like arithmetic of the whole batch in one piece: four AdamW updates on one device."""
    layout = toy_layout()
    state, metrics = run(layout, toy_step(layout), ToyBatches(64), 4)
    return jax.tree.map(np.asarray, state.trainable), metrics


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_accumulation_and_devices_change_nothing(devices: int, accumulation: int, reference: Any) -> None:
    layout = toy_layout("ddp", devices)
    state, metrics = run(layout, toy_step(layout, accumulation), ToyBatches(64), 4)
    for ours, theirs in zip(metrics, reference[1], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6, rel=2e-6), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.trainable, reference[0])


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "hsdp", "tensor"])
def test_strategies_change_nothing(strategy: Any, reference: Any) -> None:
    layout = toy_layout(strategy, 8)
    state, _ = run(layout, toy_step(layout, 2), ToyBatches(64), 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.trainable, reference[0])
    assert state.trainable["params"]["kernel"].sharding == layout.shardings.trainable["params"]["kernel"]


def test_gradient_is_that_of_the_mean_over_the_global_batch() -> None:
    """The first moment after one update with betas (0, 0) is the gradient itself, here against jax.grad."""
    optimizer = make_optimizer(
        OptimizerConfig(betas=(0.0, 0.0), clip_norm=None), ScheduleConfig(kind="constant", warmup=0), 10
    )
    layout = toy_layout("ddp", 8, optimizer)
    state, rows = layout.init(0), ToyBatches(64)[0]
    loss = causal_lm(Bigram())
    plain = jax.grad(lambda v: mean(loss(v, jax.tree.map(jnp.asarray, rows), None))["loss"])(
        jax.tree.map(np.asarray, state.trainable)
    )
    state, _ = make_train_step(loss, optimizer, layout, 4)(state, layout.put(rows))
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moment, plain)


def test_the_decoder_too() -> None:
    """The same on a real decoder, scanned, with padding, on 8 devices of ZeRO-3 x tensor."""
    from hllm_jax.parallel import Layout, MeshConfig, make_mesh, make_rules

    config = tiny_config(layers=2, embed=32, heads=4, kv_heads=2, head_dim=8, mlp=32, vocab_size=64)
    model, params = tiny_model(config, scan_layers=True, attention="plain")
    optimizer = make_optimizer(OptimizerConfig(), ScheduleConfig(peak=1e-3, warmup=0), 10)
    found = []
    for mesh, devices, accumulation in (
        (MeshConfig(), 1, 1),
        (MeshConfig(fsdp=4, tensor=2), 8, 2),
    ):
        made = make_mesh(mesh, "zero3", jax.devices()[:devices])
        layout = Layout(made, make_rules("zero3"), model, optimizer)
        step = make_train_step(causal_lm(model), optimizer, layout, accumulation)
        state = layout.init(0, load=params)
        for n in range(2):
            state, metrics = step(state, layout.put(ToyBatches(16)[n]))
        found.append((jax.tree.map(np.asarray, state.trainable), float(metrics["loss"])))
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0][0], found[1][0])


def test_one_trace_over_twenty_steps_with_a_ragged_last_batch() -> None:
    layout, traces = toy_layout("zero3", 8), []
    plain = causal_lm(Bigram())

    def counted(variables: Any, batch: Any, rng: Any) -> Any:
        traces.append(1)
        return plain(variables, batch, rng)

    step = make_train_step(counted, layout.optimizer, layout)
    state, batches = layout.init(0), ToyBatches()
    for n in range(20):
        rows = batches[n]
        if n == 19:
            # As the last batch of an epoch: half of its rows are filling.
            rows = {
                name: np.where(np.arange(8)[:, None] < 4, x, 0).astype(x.dtype) for name, x in rows.items()
            }
        state, _ = step(state, layout.put(rows))
    assert len(traces) == 1
    assert step.compilations == 1


def test_live_arrays_stay_flat() -> None:
    layout = toy_layout()
    step, state, rows = toy_step(layout), layout.init(0), layout.put(ToyBatches()[0])
    counts = []
    for n in range(300):
        state, metrics = step(state, rows)
        if n % 50 == 49:
            jax.block_until_ready(metrics)
            gc.collect()
            counts.append(len(jax.live_arrays()))
    assert len(set(counts)) == 1, counts


def test_the_state_is_donated() -> None:
    layout = toy_layout()
    state = layout.init(0)
    kernel = state.trainable["params"]["kernel"]
    toy_step(layout)(state, layout.put(ToyBatches()[0]))
    assert kernel.is_deleted()


def test_batch_of_no_weight_changes_nothing() -> None:
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.0), ScheduleConfig(peak=0.1, warmup=0), 10)
    layout = toy_layout(optimizer=optimizer)
    state = layout.init(0)
    before = jax.tree.map(np.asarray, state.trainable)
    rows = ToyBatches()[0] | {"weights": np.zeros((8, 16), np.float32)}
    for _ in range(3):
        state, metrics = toy_step(layout, 2)(state, layout.put(rows))
    assert float(metrics["loss"]) == 0
    assert float(metrics["grad_norm"]) == 0
    assert float(metrics["skipped"]) == 0
    jax.tree.map(np.testing.assert_array_equal, state.trainable, before)


def test_what_is_not_finite_is_skipped_whole() -> None:
    layout = toy_layout()
    step, batches = toy_step(layout), ToyBatches(poisoned=(1,))
    state, first = step(layout.init(0), layout.put(batches[0]))
    before = jax.tree.map(np.asarray, (state.trainable, state.opt_state))
    state, second = step(state, layout.put(batches[1]))
    jax.tree.map(np.testing.assert_array_equal, (state.trainable, state.opt_state), before)
    assert (float(first["skipped"]), float(second["skipped"]), int(state.step)) == (0, 1, 2)
    state, third = step(state, layout.put(batches[2]))
    assert np.isfinite(float(third["loss"]))
    assert not np.array_equal(state.trainable["params"]["kernel"], before[0]["params"]["kernel"])


def test_frozen_leaves_stay_bit_equal_and_have_no_optimizer_state() -> None:
    layout = toy_layout("zero3", 8, trainable=matching("params/scale"))
    state = layout.init(0)
    frozen = state.frozen
    before = jax.tree.map(np.asarray, (state.trainable, frozen))
    step = toy_step(layout)
    for n in range(10):
        state, _ = step(state, layout.put(ToyBatches()[n]))
    assert state.frozen is frozen
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before[1])
    assert not np.array_equal(state.trainable["params"]["scale"], before[0]["params"]["scale"])
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * 32


def test_dropout_follows_seed_and_step() -> None:
    layout = toy_layout()
    rows = layout.put(ToyBatches()[0])
    step = toy_step(layout, dropout=0.5)
    losses = []
    for seed in (0, 0, 1):
        state, first = step(layout.init(0).replace(rng=jax.random.key_data(jax.random.key(seed))), rows)
        _, second = step(state, rows)
        losses.append((float(first["loss"]), float(second["loss"])))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_tokens_are_counted_and_learning_rate_is_the_update_s() -> None:
    layout = toy_layout()
    rows = ToyBatches()[0]
    _, metrics = toy_step(layout, 2)(layout.init(0), layout.put(rows))
    assert int(metrics["tokens"]) == int((rows["segment_ids"] > 0).sum())
    assert float(metrics["learning_rate"]) == 0


def test_evaluation_has_no_dropout_and_keeps_the_state() -> None:
    layout = toy_layout("ddp", 8)
    state, rows = layout.init(0), layout.put(ToyBatches()[0])
    with_dropout = make_eval_step(causal_lm(Bigram(dropout=0.5)), layout)(state, rows)
    without = make_eval_step(causal_lm(Bigram()), layout)(state, rows)
    assert float(with_dropout["loss"][0]) == float(without["loss"][0])
    assert not state.trainable["params"]["kernel"].is_deleted()
