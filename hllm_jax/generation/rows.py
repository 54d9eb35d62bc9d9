"""Rows of tokens that a user passes: checked, because JAX clamps what is wrong, and padded to few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hllm_jax.generation.decode import bucket


def padded_rows(
    tokens: Any, *, vocab_size: int, max_length: int, limits: dict[str, int] | None = None, **given: Any
) -> tuple[dict[str, np.ndarray], int]:
    """The arguments of a model's call, at one of few lengths, and how long the rows were.

    Args:
        tokens: int `[B, L]`, a list or an array.
        vocab_size: ids run up to this.
        max_length: of the model.
        limits: name -> how far its values may run (`positions` are known).
        given: `segment_ids`, `positions` and others, int `[B, L]` each; None: left out, but for
            `segment_ids`, which are then 1 everywhere: what is added behind the rows is 0 in all of them.

    Raises:
        ValueError: wrong shapes, ids outside the vocabulary, rows longer than `max_length`, values that run
            too far.
    """
    rows = {"tokens": _ints("tokens", tokens, None)}
    wrong = rows["tokens"][(rows["tokens"] < 0) | (rows["tokens"] >= vocab_size)]
    if wrong.size:
        raise ValueError(f"token {wrong[0]} is outside the vocabulary: ids run from 0 to {vocab_size - 1}")
    shape = rows["tokens"].shape
    rows |= {name: _ints(name, ids, shape) for name, ids in given.items() if ids is not None}
    if shape[1] > max_length and "positions" not in rows:
        raise ValueError(
            f"a row of {shape[1]} tokens is longer than the model's max_length {max_length}: "
            "shorten it, or pass positions below max_length"
        )
    for name, limit in {"positions": max_length, **(limits or {})}.items():
        if name in rows and (rows[name].min() < 0 or rows[name].max() >= limit):
            said = f"max_length - 1 = {limit - 1}" if name == "positions" else limit - 1
            raise ValueError(f"{name} must run from 0 to {said}")
    rows.setdefault("segment_ids", np.ones(shape, np.int32))
    padding = ((0, 0), (0, max(shape[1], bucket(shape[1], max_length)) - shape[1]))
    return {name: np.pad(ids, padding) for name, ids in rows.items()}, shape[1]


def right_padded(lines: Sequence[Sequence[int]], rows: int, length: int) -> np.ndarray:
    """Lists of numbers as int32 `[rows, length]`, 0 behind them and in the rows that are left."""
    filled = np.zeros((rows, length), np.int32)
    for i, line in enumerate(lines):
        filled[i, : len(line)] = line
    return filled


def _ints(name: str, values: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{name} must be integers [B, L], and these rows differ in length: fill them up to one length, "
            "with segment_ids 0 there"
        ) from None
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers [B, L], got {array.dtype} of shape {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape of tokens {shape}, got {array.shape}")
    return array.astype(np.int32)
