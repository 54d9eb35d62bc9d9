"""Rollouts: answers that a policy samples, with everything that was known while they were sampled."""

from __future__ import annotations

import jax
from flax import struct


class Rollout(struct.PyTreeNode):
    """Prompts and the answers to them. Index t speaks of token t, in every array.

    B = P·group rows; row `i·group + j` is answer j to prompt i. L = prompt window + most tokens of an answer.

    Attributes:
        tokens: int32 `[B, L]`, a prompt and right behind it its answer, padded on the right.
        lengths: int32 `[B]`, tokens of the whole row.
        actions: float32 `[B, L]`, 1 where `tokens[b, t]` was sampled, the stop token included; else 0.
        log_probs: float32 `[B, L]`, log p(tokens[b, t] | what stands before it) of the distribution that was
            sampled: at its temperature; 0 where nothing was sampled.
        ended: bool `[B]`, a stop token was sampled; false: the answer was cut off at its longest.
    """

    tokens: jax.Array
    lengths: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    ended: jax.Array
