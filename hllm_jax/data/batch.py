"""The batch every language-model objective reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array = np.ndarray | jax.Array


class LMBatch(TypedDict):
    """One batch of B rows of L (input, target) pairs; NumPy on the host, `jax.Array` once it is placed.

    A document of n tokens gives n-1 pairs, so no pair crosses documents: position i of a row holds an input
    token and the token that follows it in the same document.
    """

    tokens: Array
    """int32 [B, L], inputs; the pad id where `segment_ids` is 0."""
    targets: Array
    """int32 [B, L], the next token of the same document; the pad id where `segment_ids` is 0."""
    weights: Array
    """float32 [B, L], weight of predicting the target; 0 on padding and on what is not to be learned."""
    segment_ids: Array
    """int32 [B, L], 0 = padding, 1, 2, … = the documents of this row in order."""
    positions: Array
    """int32 [B, L], 0, 1, … from the start of each segment of the row; 0 on padding."""
