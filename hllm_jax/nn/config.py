"""What layers can be told: the choices that a spec makes among the parts of this room. Imports no jax."""

from __future__ import annotations

from typing import Literal

from hllm_jax.config.declare import Invalid, config

Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Pairing = Literal["half", "interleaved"]
Kernel = Literal["auto", "plain", "blocked", "cudnn"]


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
