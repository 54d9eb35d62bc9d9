"""Factors of RoPE in GGUF files: those of llama.cpp's converter, and the scaling that they are read as."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hllm_jax.models.families import llama, presets
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.rope_factors import NAME, read_scaling
from hllm_jax.models.families.table import Arrays
from hllm_jax.nn import RopeScaling
from hllm_jax.testing.models import tiny_config


def converted(dims: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """The factors as a converter finds them, by wavelength and in float32 (Llama 3.1's published rule)."""
    long, short = scaling.original_length / scaling.low, scaling.original_length / scaling.high
    factors = []
    for exponent in np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims):
        wavelength = 2 * math.pi * np.float32(theta) ** exponent
        if wavelength < short:
            factors.append(1.0)
        elif wavelength > long:
            factors.append(scaling.factor)
        else:
            smooth = (scaling.original_length / wavelength - scaling.low) / (scaling.high - scaling.low)
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


def held(factors: np.ndarray) -> Arrays:
    return Arrays("the GGUF file", {NAME: factors})


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b"])
def test_published_scalings_are_written_and_read(name: str) -> None:
    spec = presets()[name]
    assert spec.rope_scaling is not None
    expected = converted(spec.rope_dims, spec.rope_theta, spec.rope_scaling)
    assert 1 < len(np.unique(expected)) < len(expected)
    np.testing.assert_allclose(llama.gguf_extra(spec)[NAME], expected, rtol=1e-5)
    assert read_scaling(held(expected), spec.rope_dims, spec.rope_theta) == spec.rope_scaling


@pytest.mark.parametrize(
    ("dims", "theta", "scaling"),
    [
        (10, 10000.0, RopeScaling(kind="llama3", factor=4.0, original_length=16)),
        (12, 500.0, RopeScaling(kind="llama3", factor=8.0, original_length=777)),
        (64, 10000.0, RopeScaling(kind="llama3", factor=32.0, high=16.0, original_length=3000)),
        (16, 10000.0, RopeScaling(kind="linear", factor=2.5)),
    ],
)
def test_other_scalings_are_found_from_their_factors(dims: int, theta: float, scaling: RopeScaling) -> None:
    found = (
        np.full(dims // 2, 2.5, np.float32) if scaling.kind == "linear" else converted(dims, theta, scaling)
    )
    read = read_scaling(held(found), dims, theta)
    assert read is not None
    if scaling.kind == "linear":
        assert read == scaling
    else:
        np.testing.assert_allclose(converted(dims, theta, read), found, rtol=1e-4)


def test_no_factors_and_factors_of_one_are_no_scaling() -> None:
    assert read_scaling(Arrays("the GGUF file", {}), 16, 10000.0) is None
    assert read_scaling(held(np.ones(8, np.float32)), 16, 10000.0) is None


def test_factors_of_another_rule_are_refused() -> None:
    with pytest.raises(ConfigRefused, match=r"rope_freqs\.weight are of no RoPE scaling"):
        read_scaling(held(np.array([1.0, 3.0, 2.0, 8.0], np.float32)), 8, 10000.0)
    with pytest.raises(ConfigRefused, match=r"shape \[3\], expected \[4\]"):
        read_scaling(held(np.ones(3, np.float32)), 8, 10000.0)


def test_a_scaled_llama_leaves_as_gguf_and_comes_back() -> None:
    linear = tiny_config(rope_scaling=RopeScaling(kind="linear", factor=2.0))
    assert llama.to_gguf(linear)["llama.rope.scaling.factor"] == 2.0
    assert llama.gguf_extra(linear) == {}
    scaled = tiny_config(
        rope_scaling=RopeScaling(kind="llama3", factor=8.0), qkv_bias=True, out_bias=True, mlp_bias=True
    )
    metadata, extra = llama.to_gguf(scaled), llama.gguf_extra(scaled)
    biases = {f"blk.0.{name}.bias": np.zeros(1) for name in ("attn_q", "attn_output", "ffn_up")}
    assert llama.from_gguf(metadata, Arrays("the GGUF file", {**biases, **extra})) == scaled
    with pytest.raises(ConfigRefused, match="both"):
        llama.from_gguf(metadata | {"llama.rope.scaling.factor": 2.0}, Arrays("the GGUF file", extra))
