"""Optimizers by name, against arithmetic by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer
from hllm_jax.training.optimizers import decays, hidden_matrices

CONSTANT = ScheduleConfig(kind="constant", warmup=0, peak=0.1)


def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    layers = {
        "attention": {"query": {"kernel": draw(2, 8, 4, 2)}, "out": {"kernel": draw(2, 4, 2, 8)}},
        "mlp": {"up": {"kernel": draw(2, 8, 16)}},
        "mlp_norm": {"scale": draw(2, 8)},
    }
    return {
        "params": {"embed": {"embedding": draw(32, 8)}, "layers": layers, "final_norm": {"scale": draw(8)}}
    }


def update(config: OptimizerConfig, p: Any, g: Any, times: int = 1) -> Any:
    optimizer = make_optimizer(config, CONSTANT, 10)
    state, step = jax.jit(optimizer.init)(p), jax.jit(optimizer.update)
    for n in range(times):
        p, state = step(g, state, p, jnp.asarray(n))
    return p


def test_first_adamw_step_by_hand() -> None:
    """m̂ = g, √v̂ = |g|: the step is lr·(g/(|g| + eps) + decay·p), no decay on the norm."""
    p = {"w": {"kernel": jnp.asarray([[2.0, -4.0]])}, "n": {"scale": jnp.asarray([1.0])}}
    g = {"w": {"kernel": jnp.asarray([[0.5, 0.25]])}, "n": {"scale": jnp.asarray([-3.0])}}
    new = update(OptimizerConfig(weight_decay=0.1, clip_norm=None), p, g)
    np.testing.assert_allclose(new["w"]["kernel"], [[2 - 0.1 * (1 + 0.2), -4 - 0.1 * (1 - 0.4)]], rtol=1e-6)
    np.testing.assert_allclose(new["n"]["scale"], [1.1], rtol=1e-6)


def test_is_optax_adamw_with_its_schedule_inside() -> None:
    p = params()
    g = jax.tree.map(lambda x: jnp.sin(3 * x), p)
    config = OptimizerConfig(betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3, clip_norm=0.5)
    optimizer = make_optimizer(config, ScheduleConfig(peak=0.1, warmup=3), 10)
    reference = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(optimizer.schedule, 0.8, 0.9, 1e-5, weight_decay=0.3, mask=decays),
    )
    ours, theirs = (p, optimizer.init(p)), (p, reference.init(p))
    our_step, their_step = jax.jit(optimizer.update), jax.jit(reference.update)
    for n in range(6):
        ours = our_step(g, ours[1], ours[0], jnp.asarray(n))
        step, state = their_step(g, theirs[1], theirs[0])
        theirs = (optax.apply_updates(theirs[0], step), state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours[0], theirs[0])


def test_only_matrices_decay_stacked_or_not() -> None:
    mask = decays(params())["params"]
    assert mask["embed"]["embedding"]
    assert mask["layers"]["mlp"]["up"]["kernel"]
    assert not mask["layers"]["mlp_norm"]["scale"]
    assert not mask["final_norm"]["scale"]


def test_muon_sees_each_weight_as_input_times_output() -> None:
    axes = hidden_matrices(params())["params"]
    assert axes["embed"]["embedding"] is None
    assert axes["final_norm"]["scale"] is None
    layers = axes["layers"]
    assert (layers["mlp"]["up"]["kernel"].reduction_axis, layers["mlp"]["up"]["kernel"].output_axis) == (
        (1,),
        (2,),
    )
    assert layers["attention"]["query"]["kernel"].output_axis == (2, 3)
    assert layers["attention"]["out"]["kernel"].reduction_axis == (1, 2)
    # Of a mixture each expert is a matrix, its router one of the layer.
    kernels = {"up": jnp.zeros((2, 4, 8, 16)), "router": jnp.zeros((2, 8, 4))}
    experts = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    axes = hidden_matrices({"params": {"layers": {"experts": experts}}})["params"]["layers"]["experts"]
    assert (axes["up"]["kernel"].reduction_axis, axes["up"]["kernel"].output_axis) == ((2,), (3,))
    assert (axes["router"]["kernel"].reduction_axis, axes["router"]["kernel"].output_axis) == ((1,), (2,))


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor"])
def test_each_goes_downhill_and_keeps_dtypes(name: str) -> None:
    p = params()
    new = update(OptimizerConfig(name=name, weight_decay=0.01), p, p, times=5)
    assert float(optax.tree.norm(new)) < float(optax.global_norm(p))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor"])
def test_gradient_of_zero_moves_nothing_but_by_decay(name: str) -> None:
    p = params()
    zero = jax.tree.map(jnp.zeros_like, p)
    still = update(OptimizerConfig(name=name, weight_decay=0.0), p, zero, times=2)
    jax.tree.map(np.testing.assert_array_equal, still, p)
    less = update(OptimizerConfig(name=name, weight_decay=0.5), p, zero)
    kernel = ["layers", "mlp", "up", "kernel"]
    a, b = less["params"], p["params"]
    for key in kernel:
        a, b = a[key], b[key]
    np.testing.assert_allclose(a, b * (1 - 0.1 * 0.5), rtol=1e-6)


def test_clip_is_by_the_norm_of_everything() -> None:
    """|g| = 5 clipped to 1; with betas of 0 the first moment is the clipped gradient."""
    p = {"a": {"kernel": jnp.zeros((1, 1))}, "b": {"kernel": jnp.zeros((1, 1))}}
    g = {"a": {"kernel": jnp.full((1, 1), 3.0)}, "b": {"kernel": jnp.full((1, 1), -4.0)}}
    optimizer = make_optimizer(OptimizerConfig(betas=(0.0, 0.0), clip_norm=1.0), CONSTANT, 10)
    _, state = optimizer.update(g, optimizer.init(p), p, jnp.asarray(0))
    moment = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose(
        [moment["a"]["kernel"][0, 0], moment["b"]["kernel"][0, 0]], [0.6, -0.8], rtol=1e-6
    )
