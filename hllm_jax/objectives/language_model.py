"""Next-token prediction."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables


@jax.custom_vjp
def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of the targets, and the log of the partition function.

        nll = log_z - logits[target],   log_z = log Σ_v exp(logits[v])

    The backward pass is written out, `(softmax - onehot) · g`: one fused sweep over the vocabulary instead of
    a scatter into zeros of its size.

    Args:
        logits: float32 `[..., V]`.
        targets: int `[...]`, each in `[0, V)`.

    Returns:
        `nll` and `log_z`, both float32 `[...]`.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, jnp.expand_dims(targets, -1), axis=-1)
    return log_z - jnp.squeeze(picked, -1), log_z


def _forward(
    logits: jax.Array, targets: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    nll, log_z = cross_entropy(logits, targets)
    return (nll, log_z), (logits, targets, log_z)


def _backward(
    saved: tuple[jax.Array, jax.Array, jax.Array], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None]:
    logits, targets, log_z = saved
    of_nll, of_log_z = (jnp.expand_dims(g, -1) for g in cotangents)
    softmax = jnp.exp(logits - jnp.expand_dims(log_z, -1))
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    hit = (vocabulary == jnp.expand_dims(targets, -1)).astype(logits.dtype)
    return softmax * (of_nll + of_log_z) - hit * of_nll, None


cross_entropy.defvjp(_forward, _backward)


def causal_lm(model: nn.Module, z_loss: float = 0.0) -> Loss:
    """The loss of a language model on packed rows.

        loss = Σ w·(nll + z_loss·log_z²) / Σ w       (the quotient is taken by `mean`, over the global batch)

    All arithmetic after the logits is float32. Which targets count is said by `batch["weights"]` alone: ids
    (padding, end of text) are never looked at, so pad = eos is harmless and the end of a document is learned.

    Args:
        model: `model.apply(variables, tokens, segment_ids, positions, deterministic=…) -> (logits, cache)`.
        z_loss: weight of the squared log-partition (Chowdhery et al. 2022, section 5: 1e-4), 0 for none.

    Returns:
        A loss over an `LMBatch` with the entries `loss`, `accuracy` (share of weighted targets whose logit is
        the largest) and, with `z_loss`, `nll` without it.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        options: dict[str, Any] = {"deterministic": True}
        if rng is not None:
            options = {"deterministic": False, "rngs": {"dropout": rng}}
        logits, _ = model.apply(
            variables,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            **options,
        )
        logits = logits.astype(jnp.float32)
        weights = batch["weights"].astype(jnp.float32)
        nll, log_z = cross_entropy(logits, batch["targets"])
        frozen = jax.lax.stop_gradient(logits)
        picked = jnp.take_along_axis(frozen, jnp.expand_dims(batch["targets"], -1), axis=-1)
        hits = (picked >= jnp.max(frozen, axis=-1, keepdims=True)).astype(jnp.float32)

        total = jnp.sum(weights)
        plain = jnp.sum(weights * nll)
        sums: Sums = {"loss": (plain, total)}
        if z_loss:
            sums["loss"] = (plain + z_loss * jnp.sum(weights * jnp.square(log_z)), total)
            sums["nll"] = (plain, total)
        sums["accuracy"] = (jnp.sum(weights * jnp.squeeze(hits, -1)), total)
        return sums

    return loss
