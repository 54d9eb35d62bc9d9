"""What layers can be told: the choices that a spec makes among the parts of this room. Imports no jax."""

from __future__ import annotations

from typing import Literal

from hllm_jax.config.declare import Invalid, config

Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Pairing = Literal["half", "interleaved"]
Kernel = Literal["auto", "plain", "blocked", "splash", "cudnn"]


@config
class RopeScaling:
    """How RoPE's frequencies are stretched for rows longer than those of pretraining.

    Attributes:
        kind: `"linear"` divides every frequency by `factor` (Chen et al. 2023, "Position Interpolation");
            `"llama3"` divides those that turn fewer than `low` times within `original_length` tokens, keeps
            those that turn more than `high` times, and blends between (Llama 3.1).
        factor: of the stretching, at least 1.
        low, high: see `"llama3"`.
        original_length: tokens of a row in pretraining, see `"llama3"`.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (self.factor < 1, "factor", f"{self.factor} would shrink positions: at least 1"),
                (not 0 < self.low < self.high, "low", f"{self.low} must lie between 0 and high {self.high}"),
                (self.original_length < 1, "original_length", f"{self.original_length} must be at least 1"),
            ]
        )


@config
class Experts:
    """A mixture of feed-forward networks in place of one.

    Attributes:
        count: E, networks of a layer.
        per_token: how many of them a token passes.
        capacity_factor: while training, an expert takes `capacity_factor · per_token · L / count` tokens of a
            row of L, and what finds no place passes by: shapes are then fixed, and the experts can be spread
            over devices. None: no token is dropped, as in evaluation and decoding whatever is set here.
        load_balance: weight of the loss that draws the router to use all experts alike, see
            `objectives.routing`.
        router_z_loss: weight of the squared log-partition of the router (Zoph et al. 2022, eq. 5: 1e-3).
    """

    count: int = 8
    per_token: int = 2
    capacity_factor: float | None = None
    load_balance: float = 0.01
    router_z_loss: float = 0.0

    def __post_init__(self) -> None:
        factor = self.capacity_factor
        Invalid.check(
            [
                (self.count < 2, "count", f"{self.count}: a mixture has at least 2 experts"),
                (
                    not 1 <= self.per_token <= self.count,
                    "per_token",
                    f"{self.per_token} must be between 1 and count {self.count}",
                ),
                (
                    factor is not None and factor <= 0,
                    "capacity_factor",
                    f"{factor} must be positive, or left out",
                ),
                (self.load_balance < 0, "load_balance", f"{self.load_balance} must be at least 0"),
                (self.router_z_loss < 0, "router_z_loss", f"{self.router_z_loss} must be at least 0"),
            ]
        )
