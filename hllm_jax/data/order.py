"""Random orders and numbers that are pure functions of their key, alike on every machine and NumPy version.

NumPy's own generators may give other streams in another release (NEP 19); a checkpoint that stores only a
step number cannot live with that.
"""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: the increment of SplitMix64
MASK = 2**64 - 1


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014, fig. 16): a bijection of uint64 that scatters."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def state_of(*key: int) -> int:
    """The integers of a key (seed, epoch, document, …) as one number of 64 bits."""
    state = 0
    for part in key:
        state = (state + GOLDEN + part) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


class Draws:
    """Random numbers numbered from 0: number i is a function of (key, i) alone.

    Args:
        key: integers that say whose numbers these are (seed, epoch, document, …, purpose).
    """

    def __init__(self, *key: int) -> None:
        self.state = np.uint64(state_of(*key))
        self.taken = 0

    def bits(self, count: int) -> np.ndarray:
        """uint64 [count]."""
        numbers = np.arange(self.taken, self.taken + count, dtype=np.uint64)
        self.taken += count
        return mix(numbers * np.uint64(GOLDEN) + self.state)

    def uniform(self, count: int) -> np.ndarray:
        """float64 [count], uniform over [0, 1)."""
        return (self.bits(count) >> np.uint64(11)) * 2.0**-53

    def integers(self, count: int, below: int) -> np.ndarray:
        """int64 [count], uniform over `range(below)`."""
        return (self.uniform(count) * below).astype(np.int64)

    def integer(self, below: int) -> int:
        """One of `range(below)`."""
        return int(self.integers(1, below)[0])

    def permutation(self, size: int) -> np.ndarray:
        """int64 [size]: a random order of `range(size)`."""
        return np.argsort(self.bits(size), kind="stable")


def permutation(size: int, *key: int) -> np.ndarray:
    """int64 [size]: a random order of `range(size)`, determined by the integers of `key`."""
    return Draws(*key).permutation(size)
