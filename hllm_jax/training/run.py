"""A run: its folder, what it is, and where it goes on."""

from __future__ import annotations

import fnmatch
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

import hllm_jax
from hllm_jax.config import ABSENT, cache_dir, diff, to_dict, to_yaml
from hllm_jax.data.batches import Batches
from hllm_jax.models.spec import Spec, spec_to_dict
from hllm_jax.parallel import distributed
from hllm_jax.parallel.config import DistributedConfig
from hllm_jax.parallel.layout import Layout
from hllm_jax.parallel.state import TrainState, flatten
from hllm_jax.tokenizers.tokenizer import Tokenizer
from hllm_jax.training import platform
from hllm_jax.training.adapters import Base
from hllm_jax.training.checkpoints import CheckpointError, Checkpoints, write_json, write_whole
from hllm_jax.training.metrics import MetricsFile

#: Keys of cadence, placement and limits: what they change is when and where, not what is trained.
FREE = (
    "recipe",
    "run.dir",
    "run.platform",
    "run.overlap",
    "run.allow_changes",
    "train.steps",
    "train.accumulation",
    "train.logit_chunks",
    "train.reduce_dtype",
    "train.profile.*",
    "train.nan_*",
    "model.remat",
    "model.attention",
    "optimizer.offload",
    "data.cache",
    "data.workers",
    "checkpoint.*",
    "eval.*",
    "log.*",
    "reward.timeout",
    "reward.on_error",
    "ppo.kl_limit",
    "grpo.kl_limit",
    "mesh.*",
    "mesh",
    "strategy",
    "pipeline.*",
    "pipeline",
    "distributed.*",
)


class RunError(RuntimeError):
    """A run folder that cannot be used as the config says."""


class Run:
    """One run and its folder. Made by `Run.start`.

    Attributes:
        folder: `config.run.dir`.
        config: the recipe's config.
        checkpoints: of this run.
        metrics: `metrics.jsonl`, open once `restore` has said where the run goes on.
        console: where progress is printed (standard error).
        facts: what every checkpoint's manifest says of the run.
        base: the weights that adapters stand on, which are in no checkpoint; None where there are none.
    """

    def __init__(self, config: Any, folder: Path, lock: Any) -> None:
        self.config = config
        self.folder = folder
        self.console = console_of(folder)
        self.distributed: DistributedConfig = getattr(config, "distributed", None) or DistributedConfig()
        self.facts: dict[str, Any] = {}
        self.base: Base | None = None
        self.tokens = 0
        self._lock = lock
        self._known: dict[str, Any] = {}
        self._metrics: MetricsFile | None = None
        kept = config.checkpoint
        self.checkpoints = Checkpoints(folder / "checkpoints", kept.keep, kept.best)
        self.resumed = self.checkpoints.latest()

    @classmethod
    def start(cls, config: Any) -> Run:
        """Open the run folder `config.run.dir`, new or resumed.

        In this order, so that a mistake costs nothing: the other processes, platform, lock, the difference to
        the saved config, the differences between processes.
        Then the resolved config is written to `config.yaml`, and platform, versions and code to `run.json`.

        Args:
            config: of a recipe, with the sections `run` and `checkpoint`.

        Raises:
            DistributedError: the other processes do not come, or have another config, code or version.
            PlatformError: `run.platform` is not there, or flags for it come too late.
            RunError: another process works in the folder, or the config changes what the run is.
        """
        if config.run.overlap:
            platform.let_overlap(config.run.platform)
        distributed.start(getattr(config, "distributed", None) or DistributedConfig())
        found = platform.require_platform(config.run.platform)
        folder = Path(config.run.dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        # The coordinator removes what a killed save left, and what it refuses all refuse.
        with distributed.coordinator_first("run folder"):
            run = cls(config, folder, lock_folder(folder))
        try:
            with distributed.coordinator_first("config"):
                run._check_changes()
            run._agree()
            run._write_down()
        except BaseException:
            run.close()
            raise
        compilation_cache()

        import jax

        state = f"resuming at step {run.resumed}" if run.resumed is not None else "new run"
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({found})"
        run.say(f"[bold]{folder}[/bold]: {state}, on {devices}; every setting is in config.yaml there")
        if run._known["dtype"] is not None:
            run.say(", ".join(f"{what} in {dtype}" for what, dtype in run._known["dtype"].items()))
        return run

    # -- what the run is ------------------------------------------------------------------------------------

    def tokenizer(self, make: Callable[[], Tokenizer]) -> Tokenizer:
        """The tokenizer of this run: the one in its folder where it is resumed, else `make()`, and saved."""
        from hllm_jax.tokenizers import load_tokenizer

        folder = self.folder / "tokenizer"
        with distributed.coordinator_first("tokenizer"):
            # Another process finds the coordinator's; on a disk of its own it makes the same one again.
            if folder.is_dir() and (self.resumed is not None or not platform.is_coordinator()):
                return load_tokenizer(folder)
            tokenizer = make()
            if platform.is_coordinator():
                tokenizer.save(folder)
            return tokenizer

    def coordinator_first(self, name: str) -> AbstractContextManager[None]:
        """The other processes enter when process 0 has left, and find what it prepared in the cache."""
        return distributed.coordinator_first(name)

    def identify(self, *, tokenizer: Tokenizer, data: Batches, model: Spec, **more: Any) -> None:
        """Say what this run is: for people, for `run.json`, for checkpoints and for the check on resume.

        Args:
            tokenizer: its fingerprint is kept.
            data: the batches; their fingerprint is kept, their counts are printed.
            model: the architecture.
            more: whatever else must be the same on resume.
        """
        stats = data.stats
        self.facts = {
            "tokenizer": tokenizer.fingerprint,
            "data": data.fingerprint,
            "model": spec_to_dict(model),
            **({"base": self.base.facts} if self.base is not None else {}),
            **more,
        }
        same = {"tokenizer": tokenizer.fingerprint, "data": data.fingerprint}
        distributed.agree("data", same, self.distributed.barrier_seconds)
        self._known |= {"data": stats, "parameters": model.parameters()}
        self._write_known()
        self.say(f"model: {model.parameters():,} parameters; tokenizer: {tokenizer.vocab_size} ids")
        lost = {
            name: stats.get(name, 0)
            for name in ("truncated", "split", "dropped_overlong", "dropped_untrained")
        }
        trained = f"{100 * stats['trained_share']:.1f} % of the tokens trained"
        self.say(
            f"data: {stats['documents']:,.0f} records in {stats['rows']:,.0f} rows an epoch "
            f"({data.data.config.packing}), {100 * stats['fill']:.1f} % filled, "
            + ("prompts" if "records" in data.transform.empty(0) else trained)
            + "".join(f", {count:,.0f} {name.replace('_', ' ')}" for name, count in lost.items() if count)
        )

    def restore(self, layout: Layout) -> TrainState | None:
        """The newest checkpoint on the mesh of `layout`, or None for a new run.

        `metrics.jsonl` is cut back to where the run goes on.

        Raises:
            CheckpointError: damaged, of another shape, or written with another tokenizer, other data or
                another base.
        """
        if layout.adapters is not None:
            count = sum(leaf.size for leaf in flatten(layout.abstract_state.trainable).values())
            self.say(
                f"adapters: {count:,} numbers are trained, the weights of {self.config.model.load} are not"
            )
        if self.resumed is None:
            self._metrics = self.lines("metrics.jsonl")
            return None
        state, manifest = self.checkpoints.restore(layout, self.resumed, self.base)
        remedy = "run.allow_changes=true goes on all the same, another run.dir starts anew"
        for name in ("tokenizer", "data", "base"):
            then, now = (_fingerprint(facts.get(name)) for facts in (manifest.facts, self.facts))
            if then is None or now is None or then == now:
                continue
            if name == "base" or not self.config.run.allow_changes:
                raise CheckpointError(
                    f"{self.checkpoints.path(self.resumed)} was trained with another {name} "
                    f"(fingerprint {str(then)[:12]}, now {str(now)[:12]}): "
                    + (remedy if name != "base" else f"{manifest.facts['base']['load']} was its base")
                )
        self.tokens = int(manifest.facts.get("tokens", 0))
        self._metrics = self.lines("metrics.jsonl")
        return state

    # -- writing --------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> MetricsFile:
        """`metrics.jsonl`."""
        if self._metrics is None:
            self._metrics = self.lines("metrics.jsonl")
        return self._metrics

    def lines(self, name: str) -> MetricsFile:
        """A file of one line a step in the run folder, cut back to where the run goes on."""
        after = -1 if self.resumed is None else self.resumed
        return MetricsFile(self.folder / name, after, own=platform.is_coordinator())

    def save(self, state: TrainState) -> bool:
        """Start to save a checkpoint; see `Checkpoints.save`."""
        return self.checkpoints.save(state, {**self.facts, "tokens": self.tokens})

    def say(self, text: str) -> None:
        """Print a line of progress."""
        self.console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Finish saving, close files, release the folder."""
        try:
            self.checkpoints.close()
        finally:
            if self._metrics is not None:
                self._metrics.close()
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except CheckpointError as second:
            self.say(f"[red]{second}[/red]")

    # -- inside ---------------------------------------------------------------------------------------------

    def _agree(self) -> None:
        """Compare config, code, versions and the step to go on from with the other processes."""
        if distributed.processes() == 1:
            return
        own = ("distributed.*", "data.cache")
        settings = {key: value for key, value in flat(to_dict(self.config)).items() if not free(key, own)}
        here = platform.facts()
        recipe = sys.modules[type(self.config).__module__].__file__
        code = {
            "files of hllm_jax": platform.fingerprint(Path(hllm_jax.__file__).parent),
            "files of the recipe": platform.fingerprint(Path(str(recipe))),
            "python": here["python"],
            "versions": here["versions"],
        }
        values = {f"config {key}": value for key, value in settings.items()}
        values |= {f"code {key}": value for key, value in flat(code).items()}
        values |= {"step to go on from": self.resumed}
        distributed.agree("start", values, self.distributed.barrier_seconds)

    def _check_changes(self) -> None:
        saved = self.folder / "config.yaml"
        if self.resumed is None or not saved.is_file():
            return
        # A key that the saved config does not know came with a newer version; its default changes nothing.
        changes = [c for c in diff(read_yaml(saved), to_dict(self.config)) if c[1] is not ABSENT]
        if not changes:
            return
        lines = [f"  {key}: {old!r} -> {new!r}" for key, old, new in changes]
        adapters = getattr(self.config, "lora", None) is not None
        # A base is known by its weights: `restore` compares them.
        wrong = [
            key for key, _, _ in changes if not free(key, FREE) and not (adapters and key == "model.load")
        ]
        listed = "\n".join(lines)
        if any(free(key, ("lora", "lora.*")) for key in wrong):
            raise RunError(
                f"{self.folder} holds a run with other adapters, at step {self.resumed}:\n{listed}\n"
                "Adapters keep what they began with: undo that, or choose another run.dir"
            )
        if wrong and not self.config.run.allow_changes:
            raise RunError(
                f"{self.folder} holds a run with another config, at step {self.resumed}:\n{listed}\n"
                f"What the run is would change ({', '.join(wrong)}). Undo that, or choose another run.dir, "
                "or set run.allow_changes=true to go on with the new values"
            )
        self.say("changed since the last start:\n" + "\n".join(lines))

    def _write_down(self) -> None:
        path = self.folder / "run.json"
        history: list[Mapping[str, Any]] = []
        if self.resumed is not None and path.is_file():
            try:
                history = json.loads(path.read_text("utf-8"))["starts"]
            except (ValueError, KeyError, TypeError):
                history = []
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": socket.gethostname(),
            "step": self.resumed or 0,
        }
        self._known = {
            **platform.facts(),
            "dtype": effective_dtype(self.config),
            "starts": [*history, start],
        }
        self._write_known()
        if platform.is_coordinator():
            write_whole(self.folder / "config.yaml", to_yaml(self.config))

    def _write_known(self) -> None:
        if platform.is_coordinator():
            write_json(self.folder / "run.json", self._known)


def _fingerprint(fact: Any) -> Any:
    """A fact as it is compared: a base is known by its weights, wherever they lie."""
    return fact.get("fingerprint") if isinstance(fact, Mapping) else fact


def free(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of these."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def console_of(folder: Path) -> Console:
    """Standard error for the coordinator, `logs/process-N.log` in the run folder for another process."""
    if platform.is_coordinator():
        return Console(stderr=True, highlight=False)
    path = folder / "logs" / f"process-{distributed.process()}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return Console(file=path.open("a", encoding="utf-8", buffering=1), highlight=False, width=200)


def effective_dtype(config: Any) -> dict[str, str] | None:
    """The dtypes of computation and parameters that the `model` section comes to on this platform."""
    model = getattr(config, "model", None)
    if model is None:
        return None
    execution = model.execution.resolve()
    return {"compute": execution.dtype, "parameters": execution.param_dtype, "softmax and loss": "float32"}


def compilation_cache() -> None:
    """Keep compiled programs between processes, unless the user has said where (or said no)."""
    import jax

    configured: Any = jax.config
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or configured.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))


def lock_folder(folder: Path) -> Any:
    """Hold the folder against other processes; the system lets go when this process ends, however it ends.

    Raises:
        RunError: another process holds it.
    """
    if not platform.is_coordinator():
        return None
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise RunError(
            f"another process (pid {holder}) trains in {folder}: wait for it, or choose another run.dir"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a saved config."""
    from hllm_jax.config import read_document

    return dict(read_document(path).values)
