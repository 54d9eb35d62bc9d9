"""The `reward:` section. Imports no jax."""

from __future__ import annotations

import math
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

from hllm_jax.config import Invalid, config

if TYPE_CHECKING:
    from hllm_jax.rl.rewards.reward import Reward


@config
class RewardConfig:
    """What an answer is worth, and who says so.

    Attributes:
        kind: `model`: a reward model. `function`: a Python function `f(prompts, completions, records)` that
            gives a number for each. `verifier`: one that judges a single answer, `f(prompt, completion,
            record)`: true or false, or a share from 0 to 1.
        path: of a model: a run folder, a file or a name. Of a function: `file.py:function` or
            `package.module:function`. Of a verifier: the same, or one of `exact`, `number`, `pattern` and
            `poem`, which come with the package.
        options: keyword arguments of the function or verifier.
        timeout: seconds that a call of the function may take (a verifier: each answer); then it is ended.
        on_error: where there is no reward, because the function raised, took too long, or gave what is no
            finite number: `stop` the run, `skip` the answer (it has no part in the update), or this number
            instead. Both are counted.
    """

    kind: Literal["model", "function", "verifier"]
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    timeout: float = 60.0
    on_error: Literal["stop", "skip"] | float = "stop"

    def __post_init__(self) -> None:
        from hllm_jax.rl.rewards.verifiers import BUILT_IN

        named = self.path in BUILT_IN
        names = f", or one of {', '.join(BUILT_IN)}" if self.kind == "verifier" else ""
        Invalid.check(
            [
                (
                    self.kind == "function" and named,
                    "path",
                    f"{self.path} judges one answer at a time: set kind: verifier",
                ),
                (
                    self.kind != "model" and not named and ":" not in self.path,
                    "path",
                    f"{self.path!r}: file.py:function or package.module:function{names}",
                ),
                *(
                    (self.kind == "model" and told, name, "is for functions and verifiers; a model has none")
                    for name, told in (
                        ("options", bool(self.options)),
                        ("timeout", self.timeout != 60.0),
                        ("on_error", self.on_error != "stop"),
                    )
                ),
                (
                    not 0 < self.timeout < math.inf,
                    "timeout",
                    f"{self.timeout}: seconds, above 0",
                ),
                (
                    isinstance(self.on_error, float) and not math.isfinite(self.on_error),
                    "on_error",
                    f"{self.on_error}: stop, skip, or a finite number",
                ),
            ]
        )

    def build(self) -> Reward:
        """The function or verifier in a process of its own, started and loaded.

        Raises:
            ValueError: a reward model runs on the devices: it is no host reward.
            RewardError: the function cannot be loaded.
        """
        from hllm_jax.rl.rewards.reward import Reward

        if self.kind == "model":
            raise ValueError(
                "reward.kind=model runs on the devices, beside the policy; there is nothing to call"
            )
        if self.path == "poem":
            from hllm_jax.data.corpora.verse import verse

            verse()  # fetched and counted once, outside of any time-out
        return Reward(self)
