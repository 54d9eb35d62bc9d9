"""What PPO can be told. Imports no jax.

Sources of the details: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", and its
code; Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO" (cited as N+).
"""

from __future__ import annotations

from typing import Literal

from hllm_jax.config import Invalid, config
from hllm_jax.models.config import LoRAConfig


@config
class KLConfig:
    """How far the policy may go from the reference.

    Attributes:
        kind: `fixed` (Ouyang et al. 2022) or `adaptive`: the coefficient follows a target (Ziegler et al.
            2019, section 2.2).
        coefficient: β; where it is adaptive, that of the first iteration.
        target: KL of a whole answer in nats, for `adaptive` (6 in the paper).
        horizon: answers after which the coefficient has followed, for `adaptive` (10000 in the paper's code):
            the gain of an iteration is its answers / horizon.
        limit: of the relative error of an iteration, for `adaptive` (0.2 there).
        estimator: of the KL of a token, in the reward: `k1` (Ziegler et al. 2019, eq. 2), `k2`, `k3`
            (Schulman 2020).
    """

    kind: Literal["fixed", "adaptive"] = "adaptive"
    coefficient: float = 0.05
    target: float = 6.0
    horizon: int = 10000
    limit: float = 0.2
    estimator: Literal["k1", "k2", "k3"] = "k1"

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (not self.coefficient >= 0, "coefficient", f"{self.coefficient}: 0 or more"),
                (
                    self.kind == "adaptive" and not self.coefficient > 0,
                    "coefficient",
                    f"{self.coefficient}: above 0, for it is multiplied; kind: fixed allows 0",
                ),
                (not self.target > 0, "target", f"{self.target}: above 0 nats"),
                (self.horizon < 1, "horizon", f"{self.horizon}: at least 1 answer"),
                *(
                    (self.kind == "fixed" and getattr(self, name) != default, name, "is not used by fixed")
                    for name, default in (("target", 6.0), ("horizon", 10000), ("limit", 0.2))
                ),
                (not 0 < self.limit < 1, "limit", f"{self.limit}: above 0, below 1"),
            ]
        )


@config
class PPOConfig:
    """The details of PPO that are known to matter, each with its source.

    Attributes:
        kl: how far the policy may go from the reference.
        gamma: discount of a token; 1 in Ziegler et al. 2019 and N+.
        lam: λ of the advantages (Schulman et al. 2016); 0.95 in both.
        clip: ε of the ratio (Schulman et al. 2017, eq. 7).
        clip_high: ε above, if another (Yu et al. 2025).
        dual_clip: bound of the loss of bad actions that became likely (Ye et al. 2020); None: none.
        value_clip: how far a value may go from the one before, in the value loss (N+); None: no clipping.
        value_coefficient: c1 of Schulman et al. 2017, eq. 9; 0.1 in Ziegler et al. 2019.
        entropy_coefficient: c2 of the same; 0 in both.
        whiten_rewards: rewards to variance 1, keeping their mean (N+).
        whiten_advantages: advantages to mean 0 and variance 1, over the actions of the whole rollout (N+).
        score_shift, score_scale: score ← (score - shift) / scale; in N+ and Ouyang et al. 2022 the scores of
            the first policy have mean 0, and variance 1.
        score_clip: scores in [-clip, clip]; None: as they are.
        truncation: what becomes of an answer without a stop token, see `objectives.truncation_policy`:
            `keep`, `mask`, `penalise` (minus `truncation_value`), `replace` (by `truncation_value`; -1 in
            Ziegler et al. 2019 and N+).
        truncation_value: see `truncation`.
        value_init: the value model begins as the `policy` does with a new head, or as the `reward` model
            (Ouyang et al. 2022).
        kl_limit: the run stops, saved, where the KL on fresh rollouts (by `kl.estimator`, nats a token) is
            larger: the policy has left the language that its rewards know. None: never.
        value_head: a new head begins as `zeros` (N+: the first values are 0), or `normal` as that of a reward
            model (Stiennon et al. 2020).
    """

    kl: KLConfig = KLConfig()
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    score_shift: float = 0.0
    score_scale: float = 1.0
    score_clip: float | None = None
    truncation: Literal["keep", "mask", "penalise", "replace"] = "replace"
    truncation_value: float = -1.0
    value_init: Literal["policy", "reward"] = "policy"
    value_head: Literal["zeros", "normal"] = "zeros"
    kl_limit: float | None = None

    def __post_init__(self) -> None:
        shares = ("gamma", "lam")
        above = ("clip", "clip_high", "value_clip", "score_clip", "score_scale", "kl_limit")
        Invalid.check(
            [
                *((not 0 <= getattr(self, n) <= 1, n, f"{getattr(self, n)}: in [0, 1]") for n in shares),
                *(
                    (
                        getattr(self, n) is not None and not getattr(self, n) > 0,
                        n,
                        f"{getattr(self, n)}: above 0",
                    )
                    for n in above
                ),
                (not self.clip < 1, "clip", f"{self.clip}: below 1, a ratio is never negative"),
                (
                    self.dual_clip is not None and not self.dual_clip > 1,
                    "dual_clip",
                    f"{self.dual_clip}: above 1, or null",
                ),
                *(
                    (not getattr(self, n) >= 0, n, f"{getattr(self, n)}: 0 or more")
                    for n in ("value_coefficient", "entropy_coefficient")
                ),
                (
                    self.truncation_value != -1 and self.truncation in ("keep", "mask"),
                    "truncation_value",
                    f"is not used by truncation: {self.truncation}",
                ),
                (
                    self.truncation == "penalise" and not self.truncation_value > 0,
                    "truncation_value",
                    f"{self.truncation_value}: above 0, it is subtracted from the score",
                ),
            ]
        )


def check_ppo(ppo: PPOConfig, reward: str, lora: LoRAConfig | None) -> None:
    """Refuse sections that do not go together; for the `__post_init__` of a recipe's config.

    Args:
        ppo: the section.
        reward: `reward.kind`.
        lora: the section of adapters.

    Raises:
        Invalid: a value model that begins as a reward model where there is none, or DoRA.
    """
    Invalid.check(
        [
            (
                ppo.value_init == "reward" and reward != "model",
                "ppo.value_init",
                f"reward: there is no reward model, reward.kind is {reward}; policy begins with the policy",
            ),
            (
                lora is not None and lora.dora,
                "lora.dora",
                "is not possible where one base serves several models: each would measure its columns anew; "
                "leave it out",
            ),
        ]
    )
