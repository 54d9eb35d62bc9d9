"""Random orders that are pure functions of their key, the same on every machine and NumPy version."""

from __future__ import annotations

import numpy as np


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014, fig. 16): a bijection of uint64 that scatters."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permutation(size: int, *key: int) -> np.ndarray:
    """int64 [size]: a random order of `range(size)`, determined by the integers of `key` (seed, epoch, …).

    NumPy's own generators may give other streams in another release (NEP 19); a checkpoint that stores only a
    step number cannot live with that.
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = mix(state + np.uint64(0x9E3779B97F4A7C15) + np.uint64(part % 2**64))
    scattered = mix(np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + state)
    return np.argsort(scattered, kind="stable")
