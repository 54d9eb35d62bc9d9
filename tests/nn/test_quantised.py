"""Weights in few bits: the paper's numbers, errors that the formats allow, and what is kept of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from hllm_jax.nn.quantised import BLOCK, NF4, Kind, dequantise, dynamic_map, made, quantise, shapes
from tests.interop.test_llama_parity import PEERS

ASK = Path(__file__).with_name("ask_bitsandbytes.py")


def weight(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return (0.05 * np.random.default_rng(seed).normal(size=(rows, columns))).astype(np.float32)


def test_the_sixteen_values_are_the_quantiles_of_the_paper() -> None:
    """Quantiles above and below zero, each side from 1 - (1/32 + 1/30)/2 to the middle."""
    end = 1 - (1 / 32 + 1 / 30) / 2
    above = norm.ppf(np.linspace(end, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(end, 0.5, 8)[:-1])
    values = np.sort([*above, 0.0, *below])
    np.testing.assert_allclose(NF4, values / values.max(), atol=1e-5)


def test_the_map_of_eight_bits() -> None:
    values = dynamic_map()
    assert (len(values), len(set(values.tolist())), values.max()) == (256, 256, 1.0)
    np.testing.assert_allclose(
        values[[0, 1, 126, 127, 128, 254]], [-0.99297, -0.97891, -5.5e-7, 0, 5.5e-7, 0.99297], rtol=1e-4
    )


@pytest.mark.parametrize(("rows", "columns"), [(128, 40), (24, 7), (65, 300)])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_weight_comes_back_as_near_as_its_bits_allow(kind: Kind, rows: int, columns: int) -> None:
    matrix = weight(rows, columns)
    parts = quantise(matrix, kind)
    assert {n: (p.shape, p.dtype) for n, p in parts.items()} == {
        n: (p.shape, p.dtype) for n, p in shapes(rows, columns, kind).items()
    }
    again = np.asarray(dequantise(parts, rows, jnp.float32))
    assert again.shape == matrix.shape
    if kind == "int8":
        assert (np.abs(again - matrix) <= np.abs(matrix).max(axis=0) / 254 + 1e-8).all()
        return
    padded = np.pad(matrix, ((0, -rows % BLOCK), (0, 0))).reshape(-1, BLOCK, columns)
    largest = np.abs(padded).max(axis=1, keepdims=True)
    gap = np.diff(NF4).max() / 2
    error = np.abs(np.pad(again - matrix, ((0, -rows % BLOCK), (0, 0)))).reshape(padded.shape)
    assert (error <= gap * largest + 0.03 * largest.max()).all()
    assert np.sqrt(np.mean((again - matrix) ** 2)) < 0.1 * matrix.std()


def test_zeros_and_stacks() -> None:
    for kind in ("int8", "nf4"):
        assert not np.asarray(dequantise(quantise(np.zeros((64, 3)), kind), 64, jnp.float32)).any()
        stack = np.stack([weight(70, 6, seed) for seed in range(3)])
        again = np.asarray(dequantise(quantise(stack, kind), 70, jnp.float32))
        for one, other in zip(stack, again, strict=True):
            np.testing.assert_allclose(dequantise(quantise(one, kind), 70, jnp.float32), other, rtol=1e-6)


def test_whole_weights_are_not_kept_for_the_backward_pass() -> None:
    from hllm_jax.models.block import all_but_gathered

    several = quantise(np.stack([weight(256, 256, seed) for seed in range(6)]), "nf4")

    def run(x: jax.Array, parts: dict[str, jax.Array]) -> jax.Array:
        def body(x: jax.Array, parts: dict[str, jax.Array]) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ made(parts, 256, jnp.float32)), None

        policy = jax.checkpoint(body, policy=all_but_gathered, prevent_cse=False)
        return jnp.sum(jax.lax.scan(policy, x, parts)[0])

    steps = jax.make_jaxpr(jax.grad(run))(jnp.ones((2, 256)), several).eqns
    kept = [out.aval.shape for step in steps if step.primitive.name == "scan" for out in step.outvars]
    assert (6, 2, 256) in kept
    assert not [shape for shape in kept if np.prod(shape) >= 256 * 256]


def test_they_have_no_gradient() -> None:
    parts = quantise(weight(64, 4), "int8")

    def loss(scales: jax.Array) -> jax.Array:
        return jnp.sum(made({**parts, "scales": scales}, 64, jnp.float32))

    with pytest.raises(TypeError, match="train adapters on them"):
        jax.grad(loss)(parts["scales"])


@pytest.mark.peers
def test_bitsandbytes_makes_the_same_weights(tmp_path: Path) -> None:
    for number, (rows, columns) in enumerate([(128, 40), (256, 300), (64, 1)]):
        np.save(tmp_path / f"{number}.npy", weight(rows, columns, number))
    subprocess.run([PEERS, ASK, tmp_path], check=True, capture_output=True)
    for number in range(3):
        told = np.load(tmp_path / f"{number}.npz")
        matrix = np.load(tmp_path / f"{number}.npy")
        again = dequantise(quantise(matrix, "nf4"), len(matrix), jnp.float32)
        # A scale half way between two of the 256 values is rounded either way: 64 weights move by a percent.
        apart = np.abs(again - told["weight"])
        assert apart.max() < 0.02 * np.abs(matrix).max()
        assert np.mean(apart > 1e-7) < 0.02
        np.testing.assert_allclose(dynamic_map(), told["map"], rtol=0, atol=1e-7)
