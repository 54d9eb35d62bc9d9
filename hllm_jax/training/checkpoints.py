"""Checkpoints: the one place that knows Orbax.

    checkpoints/00000020/saving.json     written first: this folder is ours
    checkpoints/00000020/arrays/…        Orbax: `trainable`, `frozen` (without a base), `optimizer`
    checkpoints/00000020/manifest.json   written last: what is in it; a step without it was never saved

No file points at the newest step, so none can point at one that is half written. Only folders with our own
manifest or mark are ever deleted, and those of a step that hold nothing yet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hllm_jax.parallel.layout import Layout, LayoutError, Load, compare
from hllm_jax.parallel.state import TrainState, Tree, flatten, unflatten

FORMAT = "hllm_jax checkpoint 1"
MANIFEST, MARK, ARRAYS = "manifest.json", "saving.json", "arrays"

#: What the names of frozen parameters begin with.
BASE = "frozen/params/"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or that cannot be read as what it should be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is, readable without opening an array.

    Attributes:
        step: updates done.
        facts: of the run: `tokens` seen, `model` (spec), `tokenizer`, `data` (fingerprints); `base` where the
            frozen parameters are those of another model, which are not in here.
        arrays: name -> [shape, dtype], names as in `trainable/params/embed/embedding`.
        files: path below the checkpoint -> [bytes, CRC-32].
        metrics: of evaluations at this step.
    """

    step: int
    facts: dict[str, Any]
    arrays: dict[str, tuple[list[int], str]]
    files: dict[str, tuple[int, int]]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    format: str = FORMAT


class Checkpoints:
    """The checkpoints of one run.

    Use it as a context manager or call `close`: what is being saved is finished then, and its error raised.

    Args:
        folder: `<run>/checkpoints`.
        keep: so many of the newest stay.
        best: the best by this metric stays too (smaller is better); None for none.
        own: whether this process may write; leftovers of a save that was killed are removed then.
    """

    def __init__(self, folder: Path, keep: int = 2, best: str | None = None, own: bool = True) -> None:
        self.folder = Path(folder)
        self.keep, self.best = keep, best
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._measured: dict[int, dict[str, float]] = {}
        if own and jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if path.is_dir() and half_written(path):
                    shutil.rmtree(path)

    # -- reading --------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Committed steps, ascending."""
        if not self.folder.is_dir():
            return []
        found = [
            path for path in self.folder.iterdir() if path.name.isdecimal() and (path / MANIFEST).is_file()
        ]
        return sorted(int(path.name) for path in found)

    def latest(self) -> int | None:
        """The newest committed step, None if there is none."""
        return next(reversed(self.steps()), None)

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / f"{step:08d}"

    def restore(
        self, layout: Layout, step: int | None = None, base: Load | None = None
    ) -> tuple[TrainState, Manifest]:
        """The state of a step on the mesh of `layout`, whatever mesh it was saved on.

        Args:
            layout: where the arrays go; the saved names, shapes and dtypes must be those of its state.
            step: default the newest.
            base: reads the frozen parameters, where the checkpoint leaves them to their own model.

        Raises:
            CheckpointError: no such step; damaged; weights only; of another model or optimizer.
        """
        step = self._choose(step)
        folder = self.path(step)
        manifest = read_manifest(folder)
        wanted = items(layout.abstract_state)
        if "base" in manifest.facts:
            wanted = without_base(wanted)
        if not any(name.startswith("optimizer/") for name in manifest.arrays):
            raise CheckpointError(
                f"{folder} holds weights only, no optimizer state: it cannot be resumed. "
                f"To start from its weights set model.load={folder} and another run.dir"
            )
        try:
            compare(manifest.arrays, describe(wanted), what=f"the arrays of {folder}")
        except LayoutError as error:
            raise CheckpointError(str(error)) from None
        verify(folder, manifest)
        flat = load(folder, wanted)
        if "base" in manifest.facts:
            if base is None:
                raise CheckpointError(f"{folder} holds adapters without their base: resume it with `lora:`")
            flat |= {f"{BASE}{path}": leaf for path, leaf in layout.place_frozen(base).items()}
        return rebuild(layout.abstract_state, flat), manifest

    def _choose(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self.folder}")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self.folder}; there are {steps}"
            )
        return steps[-1] if step is None else step

    # -- writing --------------------------------------------------------------------------------------------

    def save(self, state: TrainState, facts: Mapping[str, Any], weights_only: bool = False) -> bool:
        """Start to save; returns as soon as the arrays are copied and the state may be donated.

        Args:
            state: its `step` names the checkpoint.
            facts: for the manifest; values that JSON can hold. With `base` no frozen parameters are saved.
            weights_only: leave the optimizer out; what is saved can be loaded and not resumed.

        Returns:
            False if that step is there already.

        Raises:
            CheckpointError: this save could not start, or the one before it failed.
        """
        from orbax.checkpoint import v1 as orbax

        self.wait()
        step = int(state.step)
        folder = self.path(step)
        if (folder / MANIFEST).is_file():
            return False
        arrays = without_base(items(state)) if "base" in facts else items(state)
        if weights_only:
            arrays = {name: leaf for name, leaf in arrays.items() if not name.startswith("optimizer/")}
        try:
            if jax.process_index() == 0:
                if folder.exists():
                    self._refuse_foreign(folder)
                    shutil.rmtree(folder)
                folder.mkdir(parents=True)
                write_json(folder / MARK, {"format": FORMAT, "step": step})
            response = orbax.save_checkpointables_async(str((folder / ARRAYS).absolute()), grouped(arrays))
        except Exception as error:
            raise self._failed(step, error) from error
        manifest = Manifest(step=step, facts=dict(facts), arrays=describe(arrays), files={})
        # Not a daemon: Python waits for a save that is under way, however the program ends.
        self._thread = threading.Thread(
            target=self._finish, args=(response, folder, manifest), name="checkpoint"
        )
        self._thread.start()
        return True

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note what an evaluation of a saved step found; it decides which one is best."""
        with self._lock:
            self._measured.setdefault(step, {}).update(metrics)
        self.check()
        if self._thread is None or not self._thread.is_alive():
            self._annotate(step)
            self._prune()

    def check(self) -> None:
        """Raise the error of a save in the background, if there was one."""
        if self._error is not None and (self._thread is None or not self._thread.is_alive()):
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until nothing is being saved.

        Raises:
            CheckpointError: it failed; what was saved before is still there.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """The same as `wait`."""
        self.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.wait()

    # -- inside ---------------------------------------------------------------------------------------------

    def _finish(self, response: Any, folder: Path, manifest: Manifest) -> None:
        try:
            response.result()
            if jax.process_index() == 0:
                with self._lock:
                    metrics = self._measured.get(manifest.step, {})
                files = {str(path.relative_to(folder)): checksum(path) for path in walk(folder / ARRAYS)}
                commit(folder, dataclasses.replace(manifest, files=files, metrics=dict(metrics)))
                self._annotate(manifest.step)
                self._prune()
        except BaseException as error:
            # What is half written only takes room, and room may be what is missing.
            if jax.process_index() == 0 and not (folder / MANIFEST).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            self._error = self._failed(manifest.step, error)

    def _annotate(self, step: int) -> None:
        """Write metrics that came after the commit into the manifest."""
        folder = self.path(step)
        with self._lock:
            metrics = self._measured.get(step)
            if not metrics or jax.process_index() != 0 or not (folder / MANIFEST).is_file():
                return
            manifest = read_manifest(folder)
            merged = {**manifest.metrics, **metrics}
            if merged != manifest.metrics:
                commit(folder, dataclasses.replace(manifest, metrics=merged))

    def _prune(self) -> None:
        if jax.process_index() != 0:
            return
        steps = self.steps()
        keep = set(steps[-self.keep :])
        if self.best is not None:
            scores = {step: read_manifest(self.path(step)).metrics.get(self.best) for step in steps}
            scored = {
                step: score for step, score in scores.items() if score is not None and np.isfinite(score)
            }
            if scored:
                keep.add(min(scored, key=lambda step: (scored[step], -step)))
        for step in set(steps) - keep:
            delete(self.path(step))

    def _refuse_foreign(self, folder: Path) -> None:
        if not half_written(folder):
            raise CheckpointError(f"{folder} is in the way and was not made by hllm_jax: move it elsewhere")

    def _failed(self, step: int, error: BaseException) -> CheckpointError:
        if isinstance(error, CheckpointError):
            return error
        left = self.latest()
        there = f"step {left} is saved and intact" if left is not None else "nothing was saved before"
        free = shutil.disk_usage(self.folder).free / 1e9 if self.folder.is_dir() else 0.0
        said = " ".join(str(error).split())[:400] or repr(error)
        return CheckpointError(
            f"saving step {step} to {self.path(step)} failed: {said}. "
            f"{there} ({free:.1f} GB free there); run the same command again to go on from it"
        )


# -- a state as named arrays, and back ----------------------------------------------------------------------


def items(state: TrainState) -> dict[str, Any]:
    """Every array of a state under its name: `trainable/…`, `frozen/…`, `optimizer/…` (with step and rng)."""
    named = {"/".join(("trainable", *path)): leaf for path, leaf in flatten(state.trainable).items()}
    named |= {"/".join(("frozen", *path)): leaf for path, leaf in flatten(state.frozen).items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        named["optimizer/state/" + "/".join(_key(entry) for entry in path)] = leaf
    named |= {f"optimizer/control/{name}": leaf for name, leaf in (state.control or {}).items()}
    return named | {"optimizer/step": state.step, "optimizer/rng": state.rng}


def without_base(named: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a state whose frozen parameters are those of a base, without these."""
    return {name: leaf for name, leaf in named.items() if not name.startswith(BASE)}


def rebuild(like: TrainState, named: Mapping[str, Any]) -> TrainState:
    """The inverse of `items`; `like` has the structure."""

    def part(prefix: str) -> Tree:
        flat = {name: leaf for name, leaf in named.items() if name.startswith(prefix)}
        return unflatten({tuple(name.split("/")[1:]): leaf for name, leaf in flat.items()})

    def of_optimizer(path: tuple[Any, ...], _: Any) -> Any:
        return named["optimizer/state/" + "/".join(_key(entry) for entry in path)]

    opt_state = jax.tree_util.tree_map_with_path(of_optimizer, like.opt_state)
    control = None
    if like.control is not None:
        control = {name: named[f"optimizer/control/{name}"] for name in like.control}
    return TrainState(
        step=named["optimizer/step"],
        trainable=part("trainable/"),
        frozen=part("frozen/"),
        opt_state=opt_state,
        rng=named["optimizer/rng"],
        control=control,
    )


def read_variables(folder: Path) -> Tree:
    """The variables of a checkpoint as NumPy arrays: collection -> tree; no optimizer state is read.

    Raises:
        CheckpointError: not a committed checkpoint, or damaged.
    """
    manifest = read_manifest(folder)
    verify(folder, manifest)
    wanted: dict[str, Any] = {
        name: np.empty(shape, jax.numpy.dtype(dtype))
        for name, (shape, dtype) in manifest.arrays.items()
        if not name.startswith("optimizer/")
    }
    flat = load(folder, wanted)
    return unflatten({tuple(name.split("/")[1:]): leaf for name, leaf in flat.items()})


def describe(named: Mapping[str, Any]) -> dict[str, tuple[list[int], str]]:
    """Shapes and dtypes, as in a manifest."""
    return {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in named.items()}


def grouped(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arrays as the items that Orbax stores apart: the weights can be read without the optimizer."""
    groups: dict[str, dict[str, Any]] = {}
    for name, leaf in named.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest.replace("/", ".")] = leaf
    return groups


def load(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays with these names, each where its abstract value says (a NumPy array: as NumPy)."""
    from orbax.checkpoint import v1 as orbax

    try:
        found = orbax.load_checkpointables(str((folder / ARRAYS).absolute()), grouped(wanted))
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise CheckpointError(f"{folder} cannot be read: {text}") from error
    return {name: found[name.partition("/")[0]][name.partition("/")[2].replace("/", ".")] for name in wanted}


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"no name for {entry!r}")


# -- files --------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: there is none (not a checkpoint, or never finished), or it is not one of ours.
    """
    path = Path(folder) / MANIFEST
    try:
        raw = json.loads(path.read_text("utf-8"))
        if raw["format"] != FORMAT:
            raise CheckpointError(f"{path} has the format {raw['format']!r}, this version reads {FORMAT!r}")
        arrays = {name: (list(shape), str(dtype)) for name, (shape, dtype) in raw["arrays"].items()}
        files = {name: (int(size), int(crc)) for name, (size, crc) in raw["files"].items()}
        return Manifest(
            step=int(raw["step"]), facts=raw["facts"], arrays=arrays, files=files, metrics=raw["metrics"]
        )
    except FileNotFoundError:
        state = "was never finished" if (Path(folder) / MARK).is_file() else "is no checkpoint of hllm_jax"
        raise CheckpointError(f"{folder} {state}: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): delete {folder} to go on from an older one"
        ) from None


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: names the first file that is missing, cut short or changed.
    """
    for name, (size, crc) in manifest.files.items():
        path = Path(folder) / name
        remedy = f"delete {folder} to go on from an older checkpoint"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: {remedy}")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, {size} were written: {remedy}")
        if checksum(path) != (size, crc):
            raise CheckpointError(f"{path} was changed since it was written (its checksum differs): {remedy}")


def half_written(folder: Path) -> bool:
    """Whether a folder is what a save or a deletion left that was killed."""
    there = {path.name for path in folder.iterdir()}
    begun = folder.name.isdecimal() and there <= {partial(Path(MARK)).name}
    return begun or (MARK in there and MANIFEST not in there)


def commit(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all: from here on the checkpoint exists."""
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def delete(folder: Path) -> None:
    """Remove a checkpoint of ours; killed half way, it is a leftover that the next run removes."""
    if not (folder / MANIFEST).is_file():
        return
    write_json(folder / MARK, {"format": FORMAT, "deleting": True})
    (folder / MANIFEST).unlink()
    for path in folder.iterdir():
        if path.name != MARK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def checksum(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return size, crc


def write_json(path: Path, value: Any) -> None:
    """The same as `write_whole`, of a value that JSON can hold."""
    write_whole(path, json.dumps(value, ensure_ascii=False))


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, and through to the disk."""
    with partial(path).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial(path), path)


def partial(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(path.name + ".partial")
