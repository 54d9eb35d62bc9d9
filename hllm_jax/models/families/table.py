"""Two-way tables between the tensors of published checkpoints and our parameters.

A family states each correspondence once, as templates and a way of laying out the numbers; both directions
follow from it:

    row("model.layers.{}.self_attn.q_proj.weight", "layers_{}/attention/query/kernel", Matrix())
    row("model.layers.{}.mlp.gate_up_proj.weight", ("layers_{}/mlp/gate/kernel", "layers_{}/mlp/up/kernel"),
        Joined(Matrix()))

Shapes are those of our parameters, so that a tensor of the wrong size is found before it is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hllm_jax.models.families.forms import Form, Shape


class Tensors(Protocol):
    """An open checkpoint: what it holds, and one tensor at a time."""

    @property
    def where(self) -> str:
        """The file or folder, for messages."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every tensor by name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32 where it is quantised."""
        ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """`Tensors` that are arrays already.

    Attributes:
        where: what they are, for messages.
        arrays: by name.
    """

    where: str
    arrays: Mapping[str, np.ndarray]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """See `Tensors`."""
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """See `Tensors`."""
        return self.arrays[name]


class TensorsError(ValueError):
    """Tensors that are missing, not known, or of another shape than the architecture says."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One correspondence; `{}` stands for the layer.

    Attributes:
        theirs: published templates; one with `{each}` stands for as many as our leading axis has entries.
        ours: templates of our paths in the unrolled model.
        form: how the ones hold the numbers of the others.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    form: Form

    def at(self, layer: str, entries: int = 0) -> Row:
        """The row with its layer, and the entries of our leading axis, filled in."""
        theirs, ours = (tuple(t.replace("{}", layer) for t in side) for side in (self.theirs, self.ours))
        each = (
            [t.replace("{each}", str(i)) for i in range(entries)] if "{each}" in t else [t] for t in theirs
        )
        return Row(tuple(itertools.chain(*each)), ours, self.form)


def row(theirs: str | Sequence[str], ours: str | Sequence[str], form: Form) -> Row:
    """A row; a single name may stand for a tuple of one."""

    def names(given: str | Sequence[str]) -> tuple[str, ...]:
        return (given,) if isinstance(given, str) else tuple(given)

    return Row(names(theirs), names(ours), form)


@dataclasses.dataclass(frozen=True)
class Table:
    """All correspondences between one format and our paths.

    Attributes:
        rows: see `Row`.
        ignored: their templates that carry nothing which is not known otherwise (precomputed tables).
        tied: their names that repeat the embedding, if files hold them and no row needs them.
        prefix: of their names, which some files leave out (`"bert."` in a checkpoint without heads).
        copies: (name, name of the tensor it repeats) where files hold one twice, like a tied bias.
        older: (ending, today's ending) of names that old files spell differently.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    prefix: str = ""
    copies: tuple[tuple[str, str], ...] = ()
    older: tuple[tuple[str, str], ...] = ()

    def entries(self, ours: Mapping[str, Shape]) -> list[Row]:
        """The filled-in rows that together give parameters of these shapes, each once, in their order.

        Where several rows have a path, it is the first of those whose paths are all there.

        Raises:
            TensorsError: the format has no name for one of them.
        """
        found: dict[tuple[str, ...], Row] = {}
        for path in ours:
            entry = self._entry(path, ours)
            found.setdefault(entry.ours, entry)
        return list(found.values())

    def load(self, tensors: Tensors, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, np.ndarray]]:
        """Our parameters, one at a time.

        Args:
            tensors: the open checkpoint.
            shapes: every parameter of the architecture by path.

        Raises:
            TensorsError: before anything is read, with all names that are missing, unknown or misshapen; or
                when it is read, of a tensor that holds whole numbers.
        """
        tensors = self.named(tensors)
        entries = self.entries(shapes)
        self.check(tensors, entries, shapes)
        for entry in entries:
            theirs = [_numbers(tensors, name) for name in entry.theirs]
            yield from zip(
                entry.ours, entry.form.load(theirs, [shapes[path] for path in entry.ours]), strict=True
            )
        self._check_tied(tensors, entries)
        self._check_copies(tensors)

    def shapes(self, ours: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shape of every published tensor for an architecture's parameters, in the order of `save`."""
        return self._shapes(self.entries(ours), ours)

    def check(self, tensors: Tensors, entries: Iterable[Row], shapes: Mapping[str, Shape]) -> None:
        """Compare what a checkpoint holds with what the architecture needs; see `load`."""
        wanted = self._shapes(entries, shapes)
        found = tensors.shapes
        unused = [
            name
            for name in found
            if name not in wanted
            and name not in self.tied
            and not any(name == copy and original in found for copy, original in self.copies)
            and all(_match(template, name) is None for template in self.ignored)
        ]
        missing = [name for name in wanted if name not in found]
        problems = [f"missing: {name} {list(wanted[name])}{_nearest(name, unused)}" for name in missing]
        problems += [f"not known: {name} {list(found[name])}" for name in unused]
        problems += [
            f"shape of {name}: expected {list(shape)}, found {list(found[name])}"
            for name, shape in wanted.items()
            if name in found and tuple(found[name]) != shape
        ]
        if problems:
            raise TensorsError(f"{tensors.where} does not fit its config:\n  " + _first(problems))

    def save(self, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Published name and tensor of each of our parameters (paths of the unrolled model).

        Raises:
            TensorsError: a parameter that the format has no name for.
        """
        for entry in self.entries({path: np.shape(array) for path, array in params.items()}):
            absent = [path for path in entry.ours if path not in params]
            if absent:
                raise TensorsError(f"{entry.theirs[0]} needs the parameter {absent[0]}, which is not there")
            arrays = [np.asarray(params[path]) for path in entry.ours]
            yield from zip(entry.theirs, entry.form.save(arrays, len(entry.theirs)), strict=True)

    def _entry(self, path: str, ours: Mapping[str, Shape]) -> Row:
        entries = ours[path][:1]
        fitting = [
            candidate.at(layer, *entries)
            for candidate in self.rows
            for template in candidate.ours
            if (layer := _match(template, path)) is not None
        ]
        for entry in fitting:
            if ours.keys() >= set(entry.ours):
                return entry
        if fitting:
            return fitting[0]
        raise TensorsError(f"the format has no name for the parameter {path}")

    @staticmethod
    def _shapes(entries: Iterable[Row], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        wanted: dict[str, Shape] = {}
        for entry in entries:
            ours = [shapes[path] for path in entry.ours]
            wanted |= zip(entry.theirs, entry.form.shapes(ours, len(entry.theirs)), strict=True)
        return wanted

    def named(self, tensors: Tensors) -> Tensors:
        """The checkpoint under the names of this table, where it leaves out `prefix` or uses `older` ones."""
        names = {self._today(name): name for name in tensors.shapes}
        if self.prefix and not any(name.startswith(self.prefix) for name in names):
            apart = {t for each in self.rows for t in each.theirs if not t.startswith(self.prefix)}
            names = {t if t in apart else self.prefix + t: name for t, name in names.items()}
        if all(today == name for today, name in names.items()):
            return tensors
        return _Renamed(tensors, names)

    def _today(self, name: str) -> str:
        for old, new in self.older:
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

    def _check_tied(self, tensors: Tensors, entries: Sequence[Row]) -> None:
        apart = {name for entry in entries for name in entry.theirs}
        embedding = next(e.theirs[0] for e in entries if "embed/embedding" in e.ours)
        for name in (name for name in self.tied if name in tensors.shapes and name not in apart):
            if not np.array_equal(tensors.read(name), tensors.read(embedding)):
                raise TensorsError(
                    f"{tensors.where}: the config ties head and embedding, but {name} differs from "
                    f"{embedding}: set tie_word_embeddings to false"
                )

    def _check_copies(self, tensors: Tensors) -> None:
        for copy, original in self.copies:
            if not {copy, original} <= tensors.shapes.keys():
                continue
            if not np.array_equal(tensors.read(copy), tensors.read(original)):
                raise TensorsError(f"{tensors.where}: {copy} is to repeat {original}, and differs from it")


class _Renamed:
    """A checkpoint whose tensors are read under other names (name here -> name there)."""

    def __init__(self, tensors: Tensors, names: Mapping[str, str]) -> None:
        self._tensors, self.where = tensors, tensors.where
        self._names = names

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {ours: self._tensors.shapes[theirs] for ours, theirs in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._names[name])


def _match(template: str, name: str) -> str | None:
    """The layer at which a template gives this name (`""` where it has none), or None."""
    pattern = re.escape(template).replace(re.escape("{}"), r"(\d+)")
    found = re.fullmatch(pattern, name)
    return None if found is None else (found.group(1) if found.groups() else "")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f" (nearest in the file: {near[0]})" if near else ""


def _numbers(tensors: Tensors, name: str) -> np.ndarray:
    """A tensor of weights, which are no whole numbers."""
    array = tensors.read(name)
    if array.dtype.kind in "biu":
        raise TensorsError(f"{tensors.where}: {name} holds {array.dtype}, expected floating point numbers")
    return array


def _first(problems: list[str], limit: int = 20) -> str:
    more = [f"… and {len(problems) - limit} more"] if len(problems) > limit else []
    return "\n  ".join(problems[:limit] + more)
