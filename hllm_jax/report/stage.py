"""Reading one run folder, whatever state it was left in."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hllm_jax.models.spec import Spec, spec_from_dict
from hllm_jax.report.rollouts import RolloutStep, read_rollouts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Line = dict[str, Any]
State = Literal["finished", "running", "interrupted", "stopped", "not started"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run: its configuration and what it has logged so far.

    Attributes:
        name: the folder's name.
        folder: the run folder.
        config: the resolved configuration, nested; empty if it is not there.
        config_text: `config.yaml` as it stands.
        platform: what `run.json` says of machine, versions, code and starts.
        steps: logged training steps, ascending in `step`.
        evaluations: lines with `eval/…` keys, ascending in `step`.
        samples: lines of `samples.jsonl`, ascending in `step`.
        rollouts: what `rollouts.jsonl` says of every iteration; empty for runs without rewards.
        pairs: lines of `pairs.jsonl` (histograms of held-out pairs), ascending in `step`.
        damaged: lines of `metrics.jsonl` that are no JSON (the last one of a killed run).
        checkpoint: the newest saved step; 0 without one.
        model: architecture by the newest checkpoint; `None` before the first.
        state: whether the planned steps are done, and if not whether a process is still at it. `stopped` is a
            run whose configuration does not say how many steps it wants.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    config_text: str
    platform: dict[str, Any]
    steps: tuple[Line, ...]
    evaluations: tuple[Line, ...]
    samples: tuple[Line, ...]
    rollouts: tuple[RolloutStep, ...]
    pairs: tuple[Line, ...]
    damaged: int
    checkpoint: int
    model: Spec | None
    state: State

    @property
    def last_step(self) -> int:
        """The newest step that was logged; 0 before the first."""
        return int(max((line["step"] for line in self.steps), default=0))

    @property
    def planned_steps(self) -> int | None:
        """`train.steps` of the configuration."""
        steps = _at(self.config, "train", "steps")
        return steps if isinstance(steps, int) else None

    @property
    def tokens(self) -> int | None:
        """Tokens the run has read; `None` where the log does not say."""
        return max((int(line["tokens"]) for line in self.steps if "tokens" in line), default=None)

    @property
    def seconds(self) -> float | None:
        """Time spent in training steps: step time between logged steps, summed."""
        total, before = 0.0, 0
        for line in self.steps:
            if "step_time_s" not in line:
                return None
            total += float(line["step_time_s"]) * (line["step"] - before)
            before = line["step"]
        return total if self.steps else None

    def last(self, key: str, lines: Sequence[Line] | None = None) -> float | None:
        """The newest value of a metric; `None` if it was never logged."""
        for line in reversed(self.steps + self.evaluations if lines is None else lines):
            if isinstance(line.get(key), int | float):
                return float(line[key])
        return None


def read_stage(folder: Path) -> Stage:
    """Read a run folder; missing files leave their part empty.

    Raises:
        FileNotFoundError: if the folder is no run folder (neither `config.yaml` nor `metrics.jsonl`).
    """
    if not is_run(folder):
        raise FileNotFoundError(
            f"{folder} is no run folder: it has neither config.yaml nor metrics.jsonl. "
            "`hllm report` takes the folder that `run.dir` named."
        )
    lines, damaged = _read_lines(folder / "metrics.jsonl")
    samples, _ = _read_lines(folder / "samples.jsonl")
    pairs, _ = _read_lines(folder / "pairs.jsonl")
    config_text = _read_text(folder / "config.yaml")
    config = _read_yaml(config_text)
    steps = _latest(line for line in lines if not _is_evaluation(line))
    planned = _at(config, "train", "steps")
    manifest = _read_manifest(folder)
    return Stage(
        name=folder.resolve().name,
        folder=folder,
        config=config,
        config_text=config_text,
        platform=_read_platform(folder),
        steps=steps,
        evaluations=_latest(line for line in lines if _is_evaluation(line)),
        samples=tuple(sorted(samples, key=lambda line: line["step"])),
        rollouts=read_rollouts(folder / "rollouts.jsonl"),
        pairs=_latest(pairs),
        damaged=damaged,
        checkpoint=int(manifest.get("step", 0)),
        model=_read_model(_at(manifest, "facts", "model")),
        state=_state(folder, steps, planned),
    )


def is_run(folder: Path) -> bool:
    """Whether the folder was made by a run."""
    return (folder / "config.yaml").exists() or (folder / "metrics.jsonl").exists()


def _state(folder: Path, steps: Sequence[Line], planned: object) -> State:
    last = steps[-1]["step"] if steps else 0
    if isinstance(planned, int) and last >= planned:
        return "finished"
    if _is_held(folder):
        return "running"
    if not steps:
        return "not started"
    return "interrupted" if isinstance(planned, int) else "stopped"


def _is_held(folder: Path) -> bool:
    # The lock itself is not tried: a run that starts at this moment would find it taken. The file holds the
    # process id of its last holder.
    text = _read_text(folder / ".lock").strip()
    if not text.isdecimal() or int(text) == os.getpid():
        return False
    try:
        os.kill(int(text), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_evaluation(line: Line) -> bool:
    return any(key.startswith("eval/") for key in line)


def _latest(lines: Any) -> tuple[Line, ...]:
    # A step can stand twice in the log of a run that was killed and resumed: the later line is what counts.
    by_step = {line["step"]: line for line in lines}
    return tuple(by_step[step] for step in sorted(by_step))


def _read_lines(path: Path) -> tuple[list[Line], int]:
    lines: list[Line] = []
    damaged = 0
    for text in _read_text(path).split("\n"):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif text.strip():
            damaged += 1
    return lines, damaged


def _read_text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.exists() else ""


def _read_yaml(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_manifest(folder: Path) -> dict[str, Any]:
    for path in sorted(folder.glob("checkpoints/*/manifest.json"), reverse=True):
        try:
            found = json.loads(_read_text(path))
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _read_model(fields: Any) -> Spec | None:
    try:
        return spec_from_dict(fields)
    except (TypeError, ValueError):
        return None


def _read_platform(folder: Path) -> dict[str, Any]:
    """What `run.json` says of machine, versions and code, as lines of a table."""
    text = _read_text(folder / "run.json")
    try:
        found = json.loads(text) if text else {}
    except json.JSONDecodeError:
        return {}
    if not isinstance(found, dict):
        return {}
    lines: dict[str, Any] = {}
    for name, value in found.items():
        if name == "git" and isinstance(value, dict):
            lines["commit"] = (
                f"{value.get('commit')}{' and uncommitted changes' if value.get('changed') else ''}"
            )
        elif name == "command" and isinstance(value, list):
            lines["command"] = shlex.join(
                [str(part).rpartition(os.sep)[2] if n == 0 else str(part) for n, part in enumerate(value)]
            )
        elif name == "starts" and isinstance(value, list):
            lines["starts"] = "; ".join(f"{start.get('time')} at step {start.get('step')}" for start in value)
        elif isinstance(value, dict):
            lines[name.replace("_", " ")] = ", ".join(f"{key} {part}" for key, part in value.items())
        elif value is not None:
            lines[name.replace("_", " ")] = value
    return {name: value for name, value in lines.items() if value != ""}


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
