"""What learning from pairs without a reward model can be told: the `dpo:` section. Imports no jax."""

from __future__ import annotations

from typing import Literal

from hllm_jax.config import Invalid, config

#: Those that compare the policy with a reference.
WITH_REFERENCE = ("dpo", "ipo", "kto")

#: Those that look at the mean over the tokens of an answer, not at their sum.
PER_TOKEN = ("ipo", "orpo", "simpo")


@config
class DPOConfig:
    """The loss, see `objectives/preference.py`, and where its reference comes from.

    Attributes:
        loss: `dpo` (Rafailov et al. 2023), `ipo` (Azar et al. 2023), `kto` (Ethayarajh et al. 2024: each side
            of a pair is an example of its own), `orpo` (Hong et al. 2024), `simpo` (Meng et al. 2024); the
            last two have no reference.
        beta: None: 0.1, and 2.0 for `simpo`.
        label_smoothing: share of the pairs whose sides are confused; for `dpo` and `simpo`.
        gamma: the margin of `simpo`.
        desirable_weight, undesirable_weight: of the two kinds of examples of `kto`.
        reference: `live`: computed with every update, from the base without its adapters, or where there are
            none from a frozen copy of the first weights. `precomputed`: once, for all pairs, before the first
            update, and kept in the run folder; there is no copy then.
    """

    loss: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = "dpo"
    beta: float | None = None
    label_smoothing: float = 0.0
    gamma: float = 1.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: Literal["live", "precomputed"] = "live"

    def __post_init__(self) -> None:
        kto_weights = (self.desirable_weight, self.undesirable_weight)
        Invalid.check(
            [
                (self.beta is not None and self.beta <= 0, "beta", f"{self.beta}: above 0"),
                (
                    not 0 <= self.label_smoothing < 0.5,
                    "label_smoothing",
                    f"{self.label_smoothing}: at least 0 and below 0.5, where a pair says nothing",
                ),
                (
                    self.label_smoothing > 0 and self.loss not in ("dpo", "simpo"),
                    "label_smoothing",
                    f"is not used by {self.loss}",
                ),
                (self.gamma != 1.0 and self.loss != "simpo", "gamma", f"is not used by {self.loss}"),
                (self.gamma < 0, "gamma", f"{self.gamma}: 0 or more"),
                (
                    kto_weights != (1.0, 1.0) and self.loss != "kto",
                    "desirable_weight",
                    f"weights of examples are not used by {self.loss}",
                ),
                (min(kto_weights) <= 0, "desirable_weight", f"{kto_weights}: weights are above 0"),
                (
                    self.reference == "precomputed" and self.loss == "kto",
                    "reference",
                    "kto compares prompts with the answers to others, which are not known before: live",
                ),
                (
                    self.reference == "precomputed" and not self.needs_reference,
                    "reference",
                    f"{self.loss} has none",
                ),
            ]
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the policy with a reference."""
        return self.loss in WITH_REFERENCE

    @property
    def scale(self) -> float:
        """β."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1
