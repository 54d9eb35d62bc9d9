"""What happens beside training: saving, evaluating, sampling, profiling, tracking."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from hllm_jax.config import to_dict
from hllm_jax.parallel.state import TrainState
from hllm_jax.training.config import LogConfig, ProfileConfig
from hllm_jax.training.platform import is_coordinator
from hllm_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a hook is called, and with what.

    Attributes:
        step: updates done.
        state: after that update; it is donated to the next one, so a hook must not keep it.
        final: the last update of the run.
        interrupted: the run stops here because it was asked to.
        begin: no update of this process was done yet; `step` is 0, or that of the checkpoint it goes on from.
    """

    step: int
    state: TrainState
    final: bool = False
    interrupted: bool = False
    begin: bool = False


@dataclasses.dataclass(frozen=True)
class Hook:
    """One thing to do beside training.

    Attributes:
        name: for messages.
        due: whether there is something to do at this moment; must not touch the device.
        act: does it; the device has finished the step by then. Time spent here counts as no training time.
        seen: is handed every line that is logged.
        close: at the end, however the run ends.
    """

    name: str
    due: Callable[[Moment], bool] = lambda moment: False
    act: Callable[[Moment], None] = lambda moment: None
    seen: Callable[[Mapping[str, Any]], None] = lambda line: None
    close: Callable[[], None] = lambda: None


def regularly(every: int | None, at_end: bool = True) -> Callable[[Moment], bool]:
    """Due at multiples of `every` (None: never; 0: never, not even at the end) and at the end."""

    def due(moment: Moment) -> bool:
        if every == 0 or moment.begin:
            return False
        return bool(every and moment.step % every == 0) or (at_end and moment.final)

    return due


def save(run: Run, every: int | None) -> Hook:
    """Checkpoints: every so many updates, at the end, when the run is interrupted. Goes before `evaluate`."""
    due = regularly(every)

    def act(moment: Moment) -> None:
        run.save(moment.state)

    return Hook("save", lambda moment: moment.interrupted or due(moment), act)


def evaluate(run: Run, measure: Callable[[TrainState], Mapping[str, float]], every: int | None) -> Hook:
    """Evaluation: its line goes to `metrics.jsonl`, its metrics to the manifest of that step's checkpoint.

    There is one before the first update too. A run that was killed between the checkpoint and the evaluation
    of a step does the latter when it resumes.

    Args:
        run: the run.
        measure: state -> metrics named `eval/…`.
        every: updates between two; None: at the end; 0: never.
    """
    due = regularly(every)

    def wanted(moment: Moment) -> bool:
        if moment.begin:
            return bool(every) and moment.step % every == 0 and moment.step not in run.metrics.evaluated
        return due(moment) and not moment.interrupted

    def act(moment: Moment) -> None:
        begin = time.perf_counter()
        found = dict(measure(moment.state))
        line = {"step": moment.step, **found, "eval/seconds": round(time.perf_counter() - begin, 3)}
        run.metrics.write(line)
        run.metrics.evaluated.add(moment.step)
        run.checkpoints.record(moment.step, found)
        shown = "  ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in found.items())
        run.say(f"[cyan]step {moment.step}  held out: {shown}[/cyan]")

    return Hook("evaluate", wanted, act)


def sample(run: Run, write: Callable[[TrainState], Sequence[Mapping[str, Any]]], every: int | None) -> Hook:
    """Texts that the model writes while it learns, printed and kept in `samples.jsonl`.

    Args:
        run: the run.
        write: state -> one dict per sample, with `prompt` and `text`.
        every: updates between two; None: at the end; 0: never.
    """
    due = regularly(every)
    file = run.lines("samples.jsonl")

    def act(moment: Moment) -> None:
        for found in write(moment.state):
            file.write({"step": moment.step, **found})
            text = " ".join(str(found.get("text", "")).split())
            shown = f"step {moment.step}  {found.get('prompt', '')!r} → {text[:160]}"
            run.console.print(shown, markup=False, soft_wrap=True)

    return Hook("sample", lambda moment: due(moment) and not moment.interrupted, act, close=file.close)


def profile(run: Run, config: ProfileConfig) -> Hook:
    """A profiler trace of `config.steps` updates after update `config.start`, in `<run>/profile`."""
    first, last = config.start, config.start + config.steps
    active = False

    def due(moment: Moment) -> bool:
        return config.steps > 0 and moment.step in (first, last)

    def act(moment: Moment) -> None:
        nonlocal active
        if moment.step == first:
            jax.profiler.start_trace(str(run.folder / "profile"))
            active = True
        else:
            close()
            run.say(f"profile of updates {first + 1} to {last}: {run.folder / 'profile'}")

    def close() -> None:
        nonlocal active
        if active:
            jax.profiler.stop_trace()
            active = False

    return Hook("profile", due, act, close=close)


def track(run: Run, config: LogConfig) -> list[Hook]:
    """Hooks that send every logged line to TensorBoard, W&B or SwanLab, as the config asks.

    Of several processes only the coordinator does.

    Raises:
        RuntimeError: what is asked for is not installed.
    """
    hooks: list[Hook] = []
    # All look whether it is there: it is better that all stop than one alone.
    board = _imported("tensorboardX", "log.tensorboard") if config.tensorboard else None
    library = _imported(config.tracker, "log.tracker") if config.tracker is not None else None
    if not is_coordinator():
        return hooks
    if board is not None:
        writer = board.SummaryWriter(str(run.folder / "tensorboard"))

        def to_tensorboard(line: Mapping[str, Any]) -> None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    writer.add_scalar(name, value, line["step"])

        hooks.append(Hook("tensorboard", seen=to_tensorboard, close=writer.close))
    if config.tracker is not None and library is not None:
        options = {"project": "hllm_jax", "config": to_dict(run.config)}
        if config.tracker == "wandb":
            options |= {"name": run.folder.name, "dir": str(run.folder), "resume": "allow"}
        else:
            options |= {"experiment_name": run.folder.name, "logdir": str(run.folder / "swanlab")}
        library.init(**options)

        def to_tracker(line: Mapping[str, Any]) -> None:
            values = {name: value for name, value in line.items() if name != "step"}
            library.log(values, step=line["step"])

        hooks.append(Hook(config.tracker, seen=to_tracker, close=library.finish))
    return hooks


def close_all(hooks: Sequence[Hook]) -> None:
    """Close every hook, the others even if one fails."""
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.close)


def _imported(name: str, key: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(f"{key} asks for {name}, which is not installed: pip install {name}") from error
