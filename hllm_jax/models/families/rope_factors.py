"""RoPE scaling as llama.cpp keeps it: what each frequency is divided by, in the tensor `rope_freqs.weight`.

GGUF metadata do not say Llama 3.1's scaling; its numbers are found from the factors that it gives.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Tensors
from hllm_jax.models.spec import StackConfig
from hllm_jax.nn.config import RopeScaling

NAME = "rope_freqs.weight"

#: Relative distance of factors that are the same: the converter computes wavelengths in float32.
TOLERANCE = 1e-4


def factors(dims: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """What each frequency is divided by: float32 `[dims / 2]`."""
    from hllm_jax.nn.rope import rope_frequencies

    return rope_frequencies(dims, theta) / rope_frequencies(dims, theta, scaling)


def factor_tensors(spec: StackConfig) -> dict[str, np.ndarray]:
    """The tensor by which llama.cpp scales as `"llama3"` does; nothing where the spec does not."""
    scaling = spec.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return {}
    return {NAME: factors(spec.rope_dims, spec.rope_theta, scaling)}


def read_scaling(tensors: Tensors, dims: int, theta: float) -> RopeScaling | None:
    """The scaling whose factors a file holds; None where it holds none, or they are all 1.

    Args:
        tensors: of the file.
        dims: coordinates of a head that turn.
        theta: base of the frequencies.

    Raises:
        ConfigRefused: the factors are of no scaling that is implemented here.
    """
    if NAME not in tensors.shapes:
        return None
    found = np.asarray(tensors.read(NAME), np.float64)
    if found.shape != (dims // 2,):
        raise ConfigRefused(f"{NAME} has the shape {list(found.shape)}, expected [{dims // 2}]")
    if np.allclose(found, 1.0, rtol=TOLERANCE):
        return None
    for scaling in _candidates(found, dims, theta):
        if np.allclose(factors(dims, theta, scaling), found, rtol=TOLERANCE):
            return scaling
    raise ConfigRefused(f"the factors in {NAME} are of no RoPE scaling that is implemented: {found.tolist()}")


def _candidates(found: np.ndarray, dims: int, theta: float) -> list[RopeScaling]:
    """Scalings that could have given these factors, the likelier first."""
    # The lowest frequency is divided by the whole factor. A quotient of float32 numbers is no round number.
    factor = float(f"{found.max():.6g}")
    if factor <= 1:
        return []
    published = RopeScaling(kind="llama3", factor=factor)
    lengths = [8192, *(2**n for n in range(10, 18))]
    candidates = [dataclasses.replace(published, original_length=length) for length in lengths]
    # Between the two ends, the share of a frequency that is kept is slope · frequency + shift. Only ratios of
    # `low`, `high` and the length matter, so `low` is 1.
    frequencies = theta ** -(np.arange(0, dims, 2) / dims)
    share = (1 / found - 1 / factor) / (1 - 1 / factor)
    between = (share > 1e-3) & (share < 1 - 1e-3)
    if between.sum() == 1:
        turns = share[between][0] * (published.high - published.low) + published.low
        length = round(turns * 2 * math.pi / frequencies[between][0])
        candidates.append(dataclasses.replace(published, original_length=max(length, 1)))
    if between.sum() > 1:
        slope, shift = np.polyfit(frequencies[between], share[between], 1)
        if shift < 0 < slope:
            high = float(f"{1 - 1 / shift:.4g}")
            length = round(slope * 2 * math.pi * (high - 1))
            candidates.append(dataclasses.replace(published, high=high, original_length=max(length, 1)))
    if np.allclose(found, factor, rtol=TOLERANCE):
        candidates.insert(0, RopeScaling(kind="linear", factor=factor))
    return candidates
