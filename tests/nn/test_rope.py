"""Rotary positions: the rotation written out, both pairings, no end of the table."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn import RopeScaling, apply_rope, rope_angles
from hllm_jax.nn.rope import rope_frequencies

FIXTURE = Path(__file__).parents[1] / "fixtures" / "rope.npz"


def rotated(x: np.ndarray, positions: np.ndarray, theta: float, interleaved: bool) -> np.ndarray:
    """Each pair as a complex number times e^(i·position·frequency)."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[:, :, None, None] * theta ** (-np.arange(half) / half))
    if interleaved:
        pairs = (x[..., ::2] + 1j * x[..., 1::2]) * turn
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)
    pairs = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_pairs_are_turned_by_position_times_frequency(pairing: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.asarray([[0, 1, 2, 3, 4], [7, 500, 8191, 2, 2]], np.int32)
    with jax.numpy_dtype_promotion("strict"):
        angles = rope_angles(jnp.asarray(positions), 8, 100000.0)
        out = apply_rope(jnp.asarray(x), *angles, pairing)
    # A float32 angle of 8191 radians is known to 5e-4.
    np.testing.assert_allclose(out, rotated(x, positions, 1e5, pairing == "interleaved"), atol=2e-3)
    np.testing.assert_allclose(out[0], rotated(x, positions, 1e5, pairing == "interleaved")[0], atol=2e-6)


def test_one_pairing_is_the_other_with_the_coordinates_permuted() -> None:
    """So a checkpoint of either kind can be converted by reordering rows of q and k."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(1, 6, 2, 10)), jnp.float32)
    angles = rope_angles(jnp.arange(6, dtype=jnp.int32)[None], 10, 10000.0)
    order = np.arange(10).reshape(2, 5).T.reshape(-1)  # 0 5 1 6 2 7 …
    np.testing.assert_array_equal(
        apply_rope(x[..., order], *angles, "interleaved"), apply_rope(x, *angles, "half")[..., order]
    )


def test_angles_are_float32_and_go_on_beyond_any_table() -> None:
    cos, sin = rope_angles(jnp.asarray([[10**6, 10**6 + 1]], jnp.int32), 4, 10000.0)
    assert cos.dtype == sin.dtype == jnp.float32
    assert not np.array_equal(cos[0, 0], cos[0, 1])
    x = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    assert apply_rope(x, cos, sin, "half").dtype == jnp.bfloat16


def recorded() -> dict[str, tuple[np.ndarray, dict]]:
    with np.load(FIXTURE) as stored:
        names = sorted({name.split("/")[0] for name in stored.files})
        return {
            name: (stored[f"{name}/frequencies"], json.loads(str(stored[f"{name}/rope_parameters"])))
            for name in names
        }


@pytest.mark.parametrize("name", recorded())
def test_frequencies_are_rounded_as_in_transformers(name: str) -> None:
    """To the last bit, but for the odd one: at position 100,000 a bit is an angle of 0.01."""
    theirs, told = recorded()[name]
    scaling = None
    if told["rope_type"] == "linear":
        scaling = RopeScaling(kind="linear", factor=told["factor"])
    if told["rope_type"] == "llama3":
        scaling = RopeScaling(kind="llama3", factor=told["factor"])
    ours = rope_frequencies(2 * len(theirs), told["rope_theta"], scaling)
    assert ours.dtype == theirs.dtype == np.float32
    apart = np.abs(ours.view(np.int32) - theirs.view(np.int32))
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= 1


def test_the_fixture_has_every_kind_of_scaling() -> None:
    kinds = [told["rope_type"] for _, told in recorded().values()]
    assert sorted(set(kinds)) == ["default", "linear", "llama3"]
    assert len(kinds) == 10
