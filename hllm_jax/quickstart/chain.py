"""What the stages of the quickstart share: configurations, what was found so far, and where it is printed."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rich.console import Console
from rich.text import Text

from hllm_jax.report.facts import Facts, Step, read_facts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hllm_jax.generation.language_model import LanguageModel

Scale = Literal["small", "medium", "large"]
TRAINED = ("pretrain", "sft")
EXPECTED: dict[Scale, str] = {
    "small": "about 7 minutes on two CPU cores",
    "medium": "some minutes on one GPU or TPU, half a day on a CPU (estimated)",
    "large": "some ten minutes on one large GPU or TPU, not for a CPU (estimated)",
}


class Chain:
    """What the stages share: the two configurations, what was found so far, and where it is printed.

    Attributes:
        scale, out: see `quickstart`.
        folders: run folder by stage.
        commands: the command that runs a training stage alone.
        recipes: (recipe module, config) by stage.
    """

    def __init__(self, scale: Scale, out: Path, overrides: Mapping[str, Sequence[str]]) -> None:
        from hllm_jax.recipes import load_run_config

        if scale not in get_args(Scale):
            raise ValueError(f"scale is {scale!r}: one of {', '.join(get_args(Scale))}")
        self.scale, self.out = scale, out
        self.console = Console(highlight=False)
        self.folders = {name: out / name for name in TRAINED}
        self.commands: dict[str, str] = {}
        self.recipes: dict[str, tuple[Any, Any]] = {}
        for name in TRAINED:
            config = f"configs/{name}/quickstart-{scale}.yaml"
            given = [f"run.dir={self.folders[name]}", *overrides.get(name, ())]
            if name == "sft":
                given.insert(1, f"model.load={self.folders['pretrain']}")
                if overrides.get("pretrain"):  # the base of the configuration is another one
                    given.insert(2, "base=null")
            self.commands[name] = shlex.join(["hllm", "train", config, *given])
            self.recipes[name] = load_run_config(config, given)
        self.models: dict[str, LanguageModel] = {}

    @property
    def facts(self) -> Facts:
        """What was found so far, as it is on disk."""
        return read_facts(self.out)

    def keep(self, **found: Any) -> None:
        """Add to what was found, on disk."""
        dataclasses.replace(self.facts, **found).save(self.out)

    def config(self, name: str) -> Any:
        """The configuration of a training stage."""
        return self.recipes[name][1]

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True)

    def quote(self, who: str, text: str) -> None:
        """Print what somebody said, as it is."""
        self.console.print(Text.assemble((f"{who} ", "bold"), text), soft_wrap=True)

    def begin(self) -> None:
        """Open the folder, or go on in it."""
        before = self.facts.extra.get("scale")
        if before not in (None, self.scale):
            raise ValueError(
                f"{self.out} holds a quickstart of scale {before}: give --out another folder for {self.scale}"
            )
        again = "going on in" if before else "writing to"
        self.say(
            f"[bold]hllm quickstart --scale {self.scale}[/bold]: {EXPECTED[self.scale]}; {again} {self.out}"
        )
        self.out.mkdir(parents=True, exist_ok=True)
        self.keep(extra={**self.facts.extra, "scale": self.scale})

    def took(self, name: str, seconds: float) -> None:
        """Keep how long a stage took; an interrupted one adds up."""
        before = {step.name: step for step in self.facts.steps}
        earlier = before[name].seconds if name in before else 0.0
        before[name] = Step(
            name=name,
            command=self.commands.get(name, f"hllm quickstart --scale {self.scale} --out {self.out}"),
            seconds=(earlier or 0.0) + seconds,
        )
        self.keep(steps=tuple(before.values()))

    def trained_steps(self, name: str) -> int:
        """The step of a training stage's newest checkpoint, 0 without one."""
        from hllm_jax.training.checkpoints import Checkpoints

        return Checkpoints(self.folders[name] / "checkpoints", own=False).latest() or 0

    def model(self, name: str) -> LanguageModel:
        """The model of a training stage, loaded once."""
        from hllm_jax.generation.load import load_language_model

        if name not in self.models:
            self.models[name] = load_language_model(self.folders[name])
        return self.models[name]

    def key(self) -> dict[str, Any]:
        """What the results of the last stages depend on."""
        return {name: [self.trained_steps(name), self.commands[name]] for name in TRAINED}


def minutes(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
