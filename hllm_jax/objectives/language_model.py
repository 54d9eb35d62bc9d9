"""Predicting tokens: cross-entropy, and the loss of decoders."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.objectives.chunks import sum_of_parts
from hllm_jax.objectives.routing import add_routing, apply_model
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
    return log_z - pick(logits, targets), log_z


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
    return softmax * (of_nll + of_log_z) - is_target(logits, targets).astype(logits.dtype) * of_nll, None


cross_entropy.defvjp(_forward, _backward)


def pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The logit of each target: `[..., V]` and int `[...]` -> `[...]`."""
    if not nn.get_logical_axis_rules():
        return jnp.squeeze(jnp.take_along_axis(logits, jnp.expand_dims(targets, -1), axis=-1), -1)
    # On a mesh the vocabulary may be split: a sum over a mask needs no gather, which the partitioner of XLA
    # (jax 0.10) cannot divide over two axes at once.
    return jnp.sum(jnp.where(is_target(logits, targets), logits, 0.0), axis=-1)


def is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Where each target stands in the vocabulary: `[..., V]` and int `[...]` -> bool `[..., V]`."""
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    return vocabulary == jnp.expand_dims(targets, -1)


def token_sums(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Sums:
    """Weighted sums over the targets of a batch.

        loss = Σ w·((1 - ε)·nll + ε·uniform + z_loss·log_z²) / Σ w,   uniform = -1/V Σ_v log p(v)

    (the quotient is taken by `mean`, over the global batch). `uniform` is the cross-entropy to all tokens
    alike: label smoothing as in Szegedy et al. 2016, section 7, and Vaswani et al. 2017, section 5.4. All
    arithmetic is float32. Which targets count is said by the weights alone: ids (padding, end of text) are
    never looked at, so pad = eos is harmless and the end of a document is learned.

    Args:
        logits: float `[..., V]`.
        targets: int `[...]`.
        weights: float `[...]`.
        z_loss: weight of the squared log-partition (Chowdhery et al. 2022, section 5: 1e-4), 0 for none.
        label_smoothing: ε.

    Returns:
        `loss`, `accuracy` (share of weighted targets whose logit is the largest) and, with `z_loss` or
        `label_smoothing`, `nll` without them.
    """
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    nll, log_z = cross_entropy(logits, targets)
    frozen = jax.lax.stop_gradient(logits)
    hits = (pick(frozen, targets) >= jnp.max(frozen, axis=-1)).astype(jnp.float32)

    total = jnp.sum(weights)
    plain = jnp.sum(weights * nll)
    sums: Sums = {"loss": (plain, total)}
    if z_loss or label_smoothing:
        cost = plain
        if label_smoothing:
            uniform = jnp.sum(weights * (log_z - jnp.mean(logits, axis=-1)))
            cost = (1.0 - label_smoothing) * plain + label_smoothing * uniform
        if z_loss:
            cost = cost + z_loss * jnp.sum(weights * jnp.square(log_z))
        sums = {"loss": (cost, total), "nll": (plain, total)}
    sums["accuracy"] = (jnp.sum(weights * hits), total)
    return sums


def causal_lm(model: nn.Module, z_loss: float = 0.0, chunks: int = 1) -> Loss:
    """The loss of a decoder on packed rows: every token of weight predicts the next one.

    With `prefix` in the batch, every token of a segment sees the prefix of that segment. So this is also the
    loss of prefix language models (Raffel et al. 2020, section 3.2.3) and of autoregressive blank infilling
    (Du et al. 2022, eq. 2: the sum over the shuffled spans of log p(span | part A, spans before it)), whose
    rows have weights on what comes after the prefix.

    Args:
        model: `model.apply(variables, tokens, segment_ids, positions, deterministic=…) -> (logits, cache)`,
            also with `prefix=…` for such batches.
        z_loss: see `token_sums`.
        chunks: logits of so many parts of each row, one after another: `[B, L / chunks, V]` is the most that
            is held at once, and the backward pass computes them again. The model needs `before_head`.

    Returns:
        A loss over an `LMBatch` or `PrefixBatch` with the entries of `token_sums` and `add_routing`.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        told = {name: batch[name] for name in ("segment_ids", "positions", "prefix") if name in batch}
        if chunks > 1:
            (x, head), routed = apply_model(
                model, variables, rng, batch["tokens"], method="before_head", **told
            )
            sums = chunked_sums(x, head, batch["targets"], batch["weights"], z_loss, chunks)
        else:
            (logits, _), routed = apply_model(model, variables, rng, batch["tokens"], **told)
            sums = token_sums(logits, batch["targets"], batch["weights"], z_loss)
        return add_routing(sums, routed, batch["weights"])

    return loss


def chunked_sums(
    x: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    weights: jax.Array,
    z_loss: float,
    chunks: int,
) -> Sums:
    """`token_sums(head(x), targets, weights, z_loss)` without all logits in memory.

    Args:
        x: `[B, L, D]`.
        head: part of it to logits.
        targets, weights: `[B, L]`.
        z_loss: see `token_sums`.
        chunks: divides L; see `sum_of_parts`.

    Raises:
        ValueError: it does not.
    """

    def of_part(x: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
        return token_sums(head(x), targets, weights, z_loss)

    return sum_of_parts(of_part, (x, targets, weights), chunks)
