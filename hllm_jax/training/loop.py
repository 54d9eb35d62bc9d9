"""The loop that runs every objective."""

from __future__ import annotations

import collections
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from hllm_jax.data.batches import Batches
from hllm_jax.data.loading import loader
from hllm_jax.parallel import distributed
from hllm_jax.parallel.config import pipeline_words
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.state import TrainState
from hllm_jax.training.config import TrainConfig
from hllm_jax.training.hooks import Hook, Moment, close_all
from hllm_jax.training.metrics import dumps, peak_flops, peak_memory
from hllm_jax.training.platform import is_coordinator, keep_memory
from hllm_jax.training.progress import ProgressLine
from hllm_jax.training.run import Run
from hllm_jax.training.step import Metrics


class NonFiniteError(RuntimeError):
    """The loss or the gradient was not finite, and `train.nan_policy` says to stop."""


class Step(Protocol):
    """What the loop runs: a `TrainStep`, or several of them around a rollout.

    Attributes:
        lag: updates in flight: with 2 the host reads the metrics of update n while the device works on n + 1
            and n + 2.
    """

    @property
    def lag(self) -> int: ...

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """The next state, and metrics with `tokens`, `skipped`, `loss` and `grad_norm` among them."""
        ...

    def compile(self, state: TrainState, batch: Any) -> int | None:
        """Compile for these shapes; the most bytes a device will hold, if that is known."""
        ...


class BatchSource(Protocol):
    """`batches[n]` is the global batch of update n, the same at every call."""

    def __getitem__(self, n: int) -> Any: ...


def train(
    run: Run,
    state: TrainState,
    step: Step,
    batches: BatchSource,
    layout: Layout,
    steps: int,
    hooks: Sequence[Hook] = (),
    flops_per_token: float | None = None,
) -> TrainState:
    """Train from `state.step` to `steps`.

    The host never waits for an update to finish before it has sent the next ones. SIGTERM ends the process
    with status 0 and Ctrl-C with 130, both after a checkpoint; with several processes all of them, whichever
    of them was told.

    Args:
        run: the run; its config has the sections `train` and `log`.
        state: where to begin; donated.
        step: from `make_train_step`.
        batches: `Batches`, or anything with `batches[n]`.
        layout: of the state.
        steps: updates in all.
        hooks: in the order in which they act (save before evaluate).
        flops_per_token: of one training step, for the share of the peak; None where it is not known.

    Returns:
        The state after the last update.

    Raises:
        NonFiniteError: see `train.nan_policy`; there is a checkpoint of the state before the bad update.
        SystemExit: the run was interrupted, and saved.
        CheckpointError: a checkpoint could not be written.
    """
    start = int(state.step)
    loop = Loop(run, batches, layout, start, steps, hooks, flops_per_token, step.lag)
    with run, Interruption() as interruption:
        try:
            loop.act(Moment(start, state, begin=True))
            if start >= steps:
                run.say(f"{run.folder}: all {steps} updates are done (train.steps)")
                loop.act(Moment(start, state, final=True))
                return state
            if (pipeline := layout.pipeline.facts(layout.mesh.shape["stage"])) is not None:
                run.say(pipeline_words(pipeline))
            rows = read_ahead(batches, layout, start, steps)
            ahead = layout.put(next(rows))
            begin = time.perf_counter()
            peak = step.compile(state, ahead)
            seconds = time.perf_counter() - begin
            keep_memory()
            run.say(f"compiled in {seconds:.1f} s" + (f", {peak / 1e9:.2f} GB a device" if peak else ""))
            loop.begin()
            for n in range(start, steps):
                # What crosses between host and device does so in the open: `put`, and reading metrics late.
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, ahead)
                if n + 1 < steps:
                    ahead = layout.put(next(rows))
                stop = interruption.due(n + 1)
                moment = Moment(n + 1, state, final=n + 1 == steps, interrupted=stop)
                loop.after(moment, metrics)
                if stop:
                    run.say(f"interrupted after update {n + 1}: saved, `hllm train {run.folder}` goes on")
                    raise SystemExit(interruption.status or distributed.stop_status())
            return state
        finally:
            loop.close()


def read_ahead(batches: BatchSource, layout: Layout, start: int, stop: int) -> Iterator[Any]:
    """This process's rows of batches `start` to `stop - 1`, read by threads while the device works."""
    if isinstance(batches, Batches):
        return loader(batches, start, stop, local=layout.local_rows(batches.batch_size))
    return (local_part(layout, batches[n]) for n in range(start, stop))


def local_part(layout: Layout, batch: Any) -> Any:
    """The rows of a global batch that this process feeds."""
    rows = layout.local_rows(len(next(iter(batch.values()))))
    return {name: array[rows] for name, array in batch.items()}


class Loop:
    """Bookkeeping of `train`: metrics that are still on the device, time, lines, hooks."""

    def __init__(
        self,
        run: Run,
        batches: BatchSource,
        layout: Layout,
        start: int,
        steps: int,
        hooks: Sequence[Hook],
        flops_per_token: float | None,
        lag: int,
    ) -> None:
        self.run, self.batches, self.layout, self.hooks = run, batches, layout, hooks
        self.start, self.steps, self.lag = start, steps, lag
        self.settings: TrainConfig = run.config.train
        self.every: int = run.config.log.every
        self.flops_per_token = flops_per_token
        self.peak = peak_flops() if flops_per_token else None
        self.pending: collections.deque[tuple[int, Metrics]] = collections.deque()
        self.bad_in_a_row = 0
        self.progress = ProgressLine(run.console, steps, start, run.config.log.progress)
        self.begin()

    def begin(self) -> None:
        """Training time counts from here."""
        self.clock = time.perf_counter()
        self.tokens_since = self.updates_since = 0

    def after(self, moment: Moment, metrics: Metrics) -> None:
        """An update was sent: read the metrics of an older one, and let hooks act that are due."""
        self.pending.append((moment.step, metrics))
        self.run.checkpoints.check()
        due = [hook for hook in self.hooks if hook.due(moment)]
        self.drain(0 if due or moment.final or moment.interrupted else self.lag, moment.state)
        self.act(moment, due)

    def act(self, moment: Moment, due: Sequence[Hook] | None = None) -> None:
        """Let the hooks that are due act, off the clock."""
        begin = time.perf_counter()
        for hook in [hook for hook in self.hooks if hook.due(moment)] if due is None else due:
            hook.act(moment)
        self.clock += time.perf_counter() - begin

    def drain(self, keep: int, state: TrainState) -> None:
        """Read metrics until at most `keep` updates are unread."""
        read: dict[int, dict[str, float]] = {}
        while len(self.pending) > keep:
            step, metrics = self.pending.popleft()
            values = {name: value.item() for name, value in jax.device_get(metrics).items()}
            read[step] = values
            self.run.tokens += int(values["tokens"])
            values["tokens"], tokens = self.run.tokens, int(values["tokens"])
            self.tokens_since += tokens
            self.updates_since += 1
        due = [n for n in read if n % self.every == 0 or n in (self.start + 1, self.steps)]
        if due:
            # What was read at once was computed since the last line: all of it has one speed.
            now = time.perf_counter()
            seconds = max(now - self.clock, 1e-9)
            for step in due:
                self.log(step, read[step], self.tokens_since / seconds, seconds / self.updates_since)
            self.clock, self.tokens_since, self.updates_since = now, 0, 0
        for step, values in read.items():
            if values["skipped"]:
                self.bad(step, values, state)
            else:
                self.bad_in_a_row = 0

    def log(self, step: int, values: dict[str, float], speed: float, seconds: float) -> None:
        """Write the line of one update; speed and seconds an update are means since the lines before."""
        mfu = None
        if self.flops_per_token and self.peak:
            mfu = speed * self.flops_per_token / (self.peak * self.layout.mesh.size)
        line: dict[str, Any] = {
            "step": step,
            **{name: value for name, value in values.items() if name not in ("tokens", "skipped")},
            "tokens": values["tokens"],
            "tokens_per_second": speed,
            "mfu": mfu,
            "step_time_s": seconds,
            "memory_bytes": peak_memory(),
        }
        if values["skipped"]:
            line["skipped"] = 1
        self.run.metrics.write(line)
        for hook in self.hooks:
            hook.seen(line)
        self.progress.show(line)

    def bad(self, step: int, values: dict[str, float], state: TrainState) -> None:
        """The update was not finite and was skipped: keep its batch, and stop if the config says so."""
        self.bad_in_a_row += 1
        folder = self.run.folder / "bad_batches"
        path = folder / f"{step:08d}.npz"
        if is_coordinator():
            folder.mkdir(exist_ok=True)
            arrays: dict[str, Any] = {name: np.asarray(rows) for name, rows in self.batches[step - 1].items()}
            np.savez(path, **arrays)
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(
                    dumps({"step": step, "loss": str(values["loss"]), "grad_norm": str(values["grad_norm"])})
                    + "\n"
                )
        found = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
        what = f"update {step} was skipped: {found}; its batch is in {path}"
        self.run.say(f"[red]{what}[/red]")
        limit = 1 if self.settings.nan_policy == "stop" else self.settings.nan_limit
        if self.bad_in_a_row >= limit:
            # Skipped updates changed nothing, and those sent after them are updates like any other.
            self.run.save(state)
            raise NonFiniteError(
                f"{what}. {self.bad_in_a_row} in a row; the state of update {int(state.step)} is saved. "
                "Look at the batch; lower schedule.peak or optimizer.clip_norm; "
                "train.nan_policy=continue passes over such batches"
            )

    def close(self) -> None:
        """The end, however it came."""
        self.progress.close()
        close_all(self.hooks)


class Interruption:
    """While it is entered, SIGTERM and Ctrl-C ask the loop to stop; a second Ctrl-C stops at once.

    Attributes:
        status: None, or the exit status that was asked for: 0 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self._told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # With several processes SIGTERM is JAX's: all stop after the same update.
            several = distributed.processes() > 1
            for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self, step: int) -> bool:
        """Whether the run stops after this update; asked once an update."""
        if distributed.processes() == 1:
            return self.status is not None
        if self.status is not None and not self._told:
            distributed.ask_to_stop(self.status)
            self._told = True
        return distributed.stop_at(step)

    def _ask(self, number: int, frame: Any) -> None:
        del frame
        if number == signal.SIGINT and self.status is not None:
            raise KeyboardInterrupt
        self.status = 0 if number == signal.SIGTERM else 130
