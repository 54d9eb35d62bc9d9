"""A mixture of feed-forward networks: a router sends each token to a few of them (Shazeer et al. 2017).

As in Mixtral (Jiang et al. 2024, section 2.1): `Σ_k weight_k · expert_k(x)` over the `per_token` experts
whose router logits are the largest, the weights a softmax over those.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hllm_jax.nn.axes import on_shards, parameter
from hllm_jax.nn.config import Activation, Experts
from hllm_jax.nn.grouped import Blocks, Buffers, Layout, Sorted
from hllm_jax.nn.linear import Linear
from hllm_jax.nn.mlp import ACTIVATIONS
from hllm_jax.nn.target import target_platform

#: Collection in which a mixture leaves what its losses need.
ROUTING = "routing"


class Routing(NamedTuple):
    """Sums over the tokens of each row of a batch (padding does not count), float32.

    Attributes:
        tokens: `[B]`, how many.
        chosen: `[B, E]`, how often each expert was chosen.
        probabilities: `[B, E]`, what the router gave each expert.
        log_z: `[B]`, squares of the log-partition of the router.
        dropped: `[B]`, choices that found no place, as a share of `per_token`.
    """

    tokens: jax.Array
    chosen: jax.Array
    probabilities: jax.Array
    log_z: jax.Array
    dropped: jax.Array


class Kernel(nn.Module):
    """The matrices of all experts, `kernel [E, I, O]`; `axes` names I and O."""

    shape: tuple[int, int, int]
    axes: tuple[str, str]
    std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel in `dtype`."""
        init, axes = nn.initializers.normal(self.std), ("experts", *self.axes)
        kernel = parameter(self, "kernel", init, self.shape, axes, self.param_dtype, self.dtype)
        return jnp.asarray(kernel, self.dtype)


class MixtureOfExperts(nn.Module):
    """Router and experts, each expert an `MLP` without biases.

    Attributes:
        embed, mlp: D, and F of each expert.
        experts: how many there are, how many a token passes, and how many tokens an expert takes.
        activation, gated, std, down_std: see `MLP`.
    """

    embed: int
    mlp: int
    experts: Experts
    activation: Activation = "silu"
    gated: bool = True
    std: float = 0.02
    down_std: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        D, F, E = self.embed, self.mlp, self.experts.count
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # float32: of near-equal experts a rounding would choose.
        exact: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": self.param_dtype}
        self.router = Linear((D,), (E,), ("embed", "experts"), self.std, **exact)
        if self.gated:
            self.gate = Kernel((E, D, F), ("embed", "mlp"), self.std, **kinds)
        self.up = Kernel((E, D, F), ("embed", "mlp"), self.std, **kinds)
        self.down = Kernel((E, F, D), ("mlp", "embed"), self.down_std, **kinds)

    def __call__(self, x: jax.Array, valid: jax.Array | None = None, training: bool = False) -> jax.Array:
        """Each token through its experts.

        Args:
            x: `[B, L, D]`.
            valid: bool `[B, L]`, tokens that are no padding; None: all.
            training: the capacity of experts is limited, if it is at all.

        Returns:
            `[B, L, D]`, zeros at padding. Where the collection `ROUTING` is mutable, it gets a `Routing`.
        """
        E, k = self.experts.count, self.experts.per_token
        B, L = x.shape[:2]
        logits = self.router(x)
        probabilities = jax.nn.softmax(logits, axis=-1)
        largest, chosen = jax.lax.top_k(probabilities, k)
        weights = largest / jnp.sum(largest, axis=-1, keepdims=True)
        groups = chosen if valid is None else jnp.where(valid[..., None], chosen, E)

        kernels = {name: getattr(self, name)() for name in (("gate", "up") if self.gated else ("up",))}
        kernels["down"] = self.down()
        if training and self.experts.capacity_factor is not None:
            buffers = Buffers.of(groups.reshape(B, L * k), E, capacity(self.experts, L))
            y, kept = self._through(buffers, x, kernels), buffers.kept.reshape(B, L, k)
        else:
            y, kept = self._dropless(x, groups, kernels), groups < E
        self._note(logits, probabilities, groups, kept)
        return jnp.einsum("blkd,blk->bld", y.astype(jnp.float32), weights).astype(self.dtype)

    def _dropless(self, x: jax.Array, groups: jax.Array, kernels: dict[str, jax.Array]) -> jax.Array:
        """`[B, L, D]` -> `[B, L, k, D]`; each device sorts the tokens that it holds."""
        kind = Sorted if target_platform() == "tpu" else Blocks
        rows = ("batch", "length")

        def local(x: jax.Array, groups: jax.Array, kernels: dict[str, jax.Array]) -> jax.Array:
            layout = kind.of(groups.reshape(x.shape[0], -1), self.experts.count)
            return self._through(layout, x, kernels)

        return on_shards(local, (x, groups), (rows, rows), rows, kernels)

    def _through(self, layout: Layout, x: jax.Array, kernels: dict[str, jax.Array]) -> jax.Array:
        """`[B, L, D]` -> `[B, L, k, D]` by the experts that the layout says."""
        B, L, D = x.shape
        k, activate = self.experts.per_token, ACTIVATIONS[self.activation]
        rows = layout.spread(jnp.repeat(x.astype(self.dtype), k, axis=1))
        wide = layout.product(rows, kernels["up"])
        if self.gated:
            wide = activate(layout.product(rows, kernels["gate"])) * wide
        else:
            wide = activate(wide)
        return layout.collect(layout.product(wide, kernels["down"])).reshape(B, L, k, D)

    def _note(self, logits: jax.Array, probabilities: jax.Array, groups: jax.Array, kept: jax.Array) -> None:
        if self.is_initializing() or not self.is_mutable_collection(ROUTING):
            return
        E = self.experts.count
        valid = (groups[..., 0] < E).astype(jnp.float32)
        rows = jnp.arange(groups.shape[0], dtype=jnp.int32)[:, None]
        none = jnp.zeros((groups.shape[0], E), jnp.float32)
        missed = (groups < E) & ~kept
        routing = Routing(
            tokens=jnp.sum(valid, axis=1),
            chosen=none.at[rows, groups.reshape(groups.shape[0], -1)].add(1.0, mode="drop"),
            probabilities=jnp.sum(probabilities * valid[..., None], axis=1),
            log_z=jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * valid, axis=1),
            dropped=jnp.sum(missed.astype(jnp.float32), axis=(1, 2)) / self.experts.per_token,
        )
        self.sow(ROUTING, "sums", routing)


def capacity(experts: Experts, length: int) -> int:
    """Tokens of a row of `length` that an expert takes: `factor · per_token · length / count`, rounded up.

    (Fedus et al. 2022, eq. 3; Lepikhin et al. 2020, section 2.2.)
    """
    assert experts.capacity_factor is not None
    return max(1, math.ceil(experts.capacity_factor * experts.per_token * length / experts.count))
