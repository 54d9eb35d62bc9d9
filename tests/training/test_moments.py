"""Moments of 16 and 8 bits: how far off a value may be, how many bytes there are, and what training loses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hllm_jax.config import Invalid
from hllm_jax.objectives.language_model import causal_lm
from hllm_jax.parallel import Layout, LayoutError, MeshConfig, TrainState, make_mesh, make_rules
from hllm_jax.parallel.config import Strategy
from hllm_jax.parallel.planning import devices_of, parse_topology
from hllm_jax.testing.training import Bigram, ToyBatches, toy_layout
from hllm_jax.training import Checkpoints, OptimizerConfig, ScheduleConfig, make_optimizer, make_train_step
from hllm_jax.training.moments import BLOCK, block_axis, dequantise, quantise

CONSTANT = ScheduleConfig(kind="constant", warmup=0, peak=0.01)


def drawn(*shape: int) -> jax.Array:
    """Normal numbers over six decades."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.uniform(-5, 1, shape), jnp.float32)


@pytest.mark.parametrize("signed", [True, False])
def test_an_entry_is_off_by_half_a_step_of_its_decade(signed: bool) -> None:
    """In the decade below top · 10^-k, a step is 0.9 · 10^-k / 2^(K-1-k) of the block's largest entry."""
    x = np.asarray(drawn(2 * BLOCK, 96))
    x = x if signed else np.abs(x)
    blocks = quantise(jnp.asarray(x), signed)
    assert blocks.codes.shape == x.shape
    assert blocks.scales.shape == (2, 96)
    back = np.asarray(dequantise(blocks))

    places = 7 if signed else 8
    top = 1 - 0.45 / 2 ** (places - 1)  # the largest value there is, the middle of the last step
    scale = np.repeat(np.asarray(blocks.scales), BLOCK, axis=0) / top
    decade = np.clip(np.floor(-np.log10(np.abs(x) / scale + 1e-30)), 0, places - 1)
    half = 0.45 * 10.0**-decade / 2.0 ** (places - 1 - decade)
    if not signed:  # what is below the last decade is rounded up
        half = np.where(np.abs(x) < scale * 10.0**-places, 0.55 * 10.0 ** (1 - places), half)
    assert (np.abs(back - x) <= 1.001 * half * scale).all()
    largest = np.abs(x).reshape(2, BLOCK, 96).argmax(axis=1)[:, None]
    pick = functools.partial(np.take_along_axis, indices=largest, axis=1)
    np.testing.assert_allclose(pick(back.reshape(2, BLOCK, 96)), pick(x.reshape(2, BLOCK, 96)), rtol=1e-6)


def test_what_was_quantised_stays() -> None:
    for signed in (True, False):
        once = dequantise(quantise(jnp.abs(drawn(64, 80)) if not signed else drawn(64, 80), signed))
        np.testing.assert_allclose(dequantise(quantise(once, signed)), once, rtol=1e-6)


def test_a_second_moment_is_never_rounded_to_nothing() -> None:
    x = jnp.full((64, 64), 1e-20).at[0, 0].set(1.0).at[1, 1].set(0.0)
    back = dequantise(quantise(x, signed=False))
    assert (back > 0).sum() == 64 * 64 - 1
    assert back[1, 1] == 0
    # A first moment is, beside a far larger one of its column.
    assert (dequantise(quantise(x)) > 0).sum() == 1 + 63 + 64 * 62


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((4096,), None),
        ((50257, 768), None),
        ((32, 64), None),
        ((32000, 4096), 0),
        ((32, 4096, 11008), 1),
        ((80, 64, 128, 8192), 2),
        ((22, 5632, 2048), 1),
    ],
)
def test_blocks_lie_along_the_axis_that_divides_best(shape: tuple[int, ...], axis: int | None) -> None:
    assert block_axis(shape) == axis


def toy(state_dtype: Any, strategy: Strategy = "ddp", devices: int = 1, **mesh: int) -> Layout:
    """Two matrices of 64 x 64, the smallest that have blocks."""
    optimizer = make_optimizer(OptimizerConfig(state_dtype=state_dtype), CONSTANT, 200)
    return toy_layout(strategy, devices, optimizer, mesh=MeshConfig(**mesh), model=Bigram(embed=64))


def trained(layout: Layout, steps: int) -> tuple[list[float], TrainState]:
    optimizer: Any = layout.optimizer
    step = make_train_step(causal_lm(layout.model), optimizer, layout)
    state, batches, losses = layout.init(0), ToyBatches(), []
    for n in range(steps):
        state, metrics = step(state, layout.put(batches[n]))
        losses.append(metrics["loss"])
    return [float(loss) for loss in losses], state


def test_two_hundred_updates_learn_as_in_float32() -> None:
    """… and the moments weigh half, or (1 + 4/64)/4 where they have blocks."""
    ends, sizes = {}, {}
    for dtype in ("float32", "bfloat16", "int8"):
        losses, state = trained(toy(dtype), 200)
        ends[dtype] = np.mean(losses[-10:])
        sizes[dtype] = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert ends["float32"] < 0.5 < losses[0]
    assert abs(ends["bfloat16"] - ends["float32"]) < 0.01
    assert abs(ends["int8"] - ends["float32"]) < 0.01
    # Two moments of two matrices and a vector of 64, and the count of updates.
    assert sizes["float32"] == 2 * 4 * (2 * 4096 + 64) + 4
    assert sizes["bfloat16"] == 2 * 2 * (2 * 4096 + 64) + 4
    assert sizes["int8"] == 2 * (2 * (4096 + 4 * 64) + 4 * 64) + 4


def test_codes_are_sharded_change_nothing_and_open_on_another_mesh(tmp_path: Path) -> None:
    alone, _ = trained(toy("int8"), 4)
    spread, state = trained(toy("int8", "zero3", 8, fsdp=4, tensor=2), 4)
    np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-5)
    for field in ("mu", "nu"):
        for name in ("embedding", "kernel"):
            moment = optax.tree_utils.tree_get(state.opt_state, field)["params"][name]
            assert moment.codes.dtype == {"mu": jnp.int8, "nu": jnp.uint8}[field]
            assert moment.codes.addressable_shards[0].data.size == 4096 // 8

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    back, _ = Checkpoints(tmp_path, own=False).restore(toy("int8"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, jax.device_get(b)), back, state)


def test_muon_keeps_its_momentum_in_eight_bits_too() -> None:
    p = {"params": {"mlp": {"up": {"kernel": drawn(64, 128)}}, "norm": {"scale": jnp.ones(4096)}}}
    full = make_optimizer(OptimizerConfig(name="muon"), CONSTANT, 10)
    small = make_optimizer(OptimizerConfig(name="muon", state_dtype="int8"), CONSTANT, 10)
    g = jax.tree.map(jnp.sin, p)
    states = [full.init(p), small.init(p)]
    assert "int8" in {leaf.dtype.name for leaf in jax.tree.leaves(states[1])}
    moved = []
    for each, state in zip((full, small), states, strict=True):
        now, step = p, jax.jit(each.update)
        for n in range(2):
            now, state = step(g, state, now, jnp.asarray(n))
        moved.append(jax.tree.map(jnp.subtract, now, p)["params"])
    for path in (("mlp", "up", "kernel"), ("norm", "scale")):
        a, b = (functools.reduce(lambda tree, key: tree[key], path, each) for each in moved)
        assert np.linalg.norm(a - b) < 0.15 * np.linalg.norm(a), path


def test_choices_that_cannot_work_are_refused() -> None:
    with pytest.raises(Invalid, match="adafactor keeps sums of rows and columns"):
        OptimizerConfig(name="adafactor", state_dtype="int8")
    with pytest.raises(Invalid, match=r"never falls with a decay of 0.999: betas\[1\] up to 0.996, or int8"):
        OptimizerConfig(betas=(0.9, 0.999), state_dtype="bfloat16")


def test_a_cpu_has_nowhere_to_offload_to() -> None:
    optimizer = make_optimizer(OptimizerConfig(offload=True), CONSTANT, 10)
    with pytest.raises(LayoutError, match="CPUs, whose memory is that of the host"):
        toy_layout(optimizer=optimizer)


@pytest.mark.slow
def test_the_state_waits_on_the_host_of_a_tpu() -> None:
    """Compiled ahead of time for eight chips: its bytes are arguments of the host, not of the device."""
    pytest.importorskip("libtpu")
    devices = devices_of(parse_topology("v5e:2x4"))
    rules, arguments = make_rules("zero3"), {}
    for offload in (False, True):
        optimizer = make_optimizer(OptimizerConfig(offload=offload), CONSTANT, 10)
        layout = Layout(make_mesh(None, "zero3", devices), rules, Bigram(embed=64), optimizer)
        step = make_train_step(causal_lm(layout.model), optimizer, layout)
        batch = {
            name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=layout.sharding_of(rows.ndim))
            for name, rows in ToyBatches()[0].items()
        }
        compiled = step.lower(layout.abstract_state, batch).compile()
        memory: Any = compiled.memory_analysis()
        arguments[offload] = (memory.argument_size_in_bytes, memory.host_argument_size_in_bytes)
    # Two moments of two matrices, each device its eighth, and of a vector.
    waiting = 2 * 4 * (2 * 4096 // 8 + 64)
    assert arguments[False][1] == 0
    assert waiting <= arguments[True][1] <= 2 * waiting, "narrow parts are padded"
    assert arguments[False][0] - arguments[True][0] >= waiting
