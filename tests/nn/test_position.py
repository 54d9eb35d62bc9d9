"""Positions that are added: sinusoids and tables, and T5's buckets of distance, against the papers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn import RelativeBias, RopeScaling, Table, apply_rope, rope_angles, sinusoids
from hllm_jax.nn.rope import rope_frequencies


def test_sinusoids_are_those_of_the_paper_with_sines_first() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos of the same (Vaswani et al. 2017, 3.5)."""
    positions = np.asarray([[0, 1, 2, 3], [100, 7, 5, 511]])
    out = np.asarray(sinusoids(jnp.asarray(positions), 4))
    for (b, t), position in np.ndenumerate(positions):
        for i in (0, 1):
            angle = position / 10000 ** (2 * i / 4)
            assert out[b, t, i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert out[b, t, 2 + i] == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_place_outside_a_table_is_not_its_last_row() -> None:
    table = Table(3, 2)
    params = {"params": {"embedding": jnp.arange(6.0).reshape(3, 2)}}
    out = table.apply(params, jnp.asarray([[0, 2, 3]]))
    np.testing.assert_array_equal(out[0, :2], [[0, 1], [4, 5]])
    assert np.isnan(out[0, 2]).all()


@pytest.mark.parametrize(
    ("causal", "distance", "bucket"),
    [
        # Both directions have 16 buckets each: 8 hold one distance, 8 widen logarithmically up to 128.
        *((False, d, b) for d, b in ((0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-127, 15))),
        *((False, d, b) for d, b in ((-5000, 15), (1, 17), (7, 23), (8, 24), (128, 31), (9999, 31))),
        # One direction has all 32: 16 hold one distance; what is ahead is masked anyway.
        *((True, d, b) for d, b in ((0, 0), (-1, 1), (-15, 15), (-16, 16), (-128, 31), (-9999, 31), (3, 0))),
    ],
)
def test_buckets_of_distance(causal: bool, distance: int, bucket: int) -> None:
    """Worked by hand from Raffel et al. 2020, 2.1, with 32 buckets up to a distance of 128."""
    assert int(RelativeBias(1, causal=causal).bucket(jnp.asarray([distance]))[0]) == bucket


def test_a_bias_is_one_number_per_head_and_bucket() -> None:
    layer = RelativeBias(2, buckets=8, distance=16)
    table = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    out = layer.apply({"params": {"embedding": table}}, jnp.asarray([[5, 6]]), jnp.arange(7)[None])
    assert out.shape == (1, 2, 2, 7)
    np.testing.assert_array_equal(out[0, :, 0, 5], table[0])
    np.testing.assert_array_equal(out[0, :, 1, 5], table[1])


def test_linear_scaling_reads_positions_closer_together() -> None:
    scaled = rope_angles(jnp.asarray([[8]]), 6, 1e4, RopeScaling(kind="linear", factor=4.0))
    for ours, plain in zip(scaled, rope_angles(jnp.asarray([[2]]), 6, 1e4), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-6)


def test_llama3_scaling_by_hand() -> None:
    """Original length 64, low 1, high 4: pairs that turn at least 4 times stay, those below once are
    divided by 8, and one that turns 2.5 times is half of each: (1/2 + 1/2/8) of its frequency."""
    scaling = RopeScaling(kind="llama3", factor=8.0, original_length=64)
    turns = np.asarray([10.0, 4.0, 2.5, 1.0, 0.1])
    theta = 1e4
    frequencies = rope_frequencies(64, theta)
    wanted = 64 * frequencies.astype(np.float64) / (2 * math.pi)
    found = rope_frequencies(64, theta, scaling) / frequencies
    share = np.interp(wanted, turns[::-1], np.asarray([1, 1, 0.5 + 0.5 / 8, 1 / 8, 1 / 8])[::-1])
    np.testing.assert_allclose(found, share, rtol=1e-5)


def test_coordinates_beyond_the_fraction_stay() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
    cos, sin = rope_angles(jnp.asarray([[3, 4, 5]]), 4, 1e4)
    out = apply_rope(x, cos, sin, "half")
    np.testing.assert_array_equal(out[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(out[..., :4], apply_rope(x[..., :4], cos, sin, "half"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"factor": 0.5}, "would shrink"),
        ({"low": 4.0}, "between 0 and high"),
        ({"original_length": 0}, "at least 1"),
    ],
)
def test_impossible_scalings_are_refused(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RopeScaling(**{"kind": "llama3", "factor": 2.0, **changes})
