"""Two-way tables between the tensors of published checkpoints and our parameters.

A family states each correspondence once, as a template and a way of laying out the numbers; both
directions follow from it:

    table(("model.layers.{}.self_attn.q_proj.weight", "layers_{}/attention/query/kernel", Matrix()), …)

Shapes are those of our parameters, so that a tensor of the wrong size is found before it is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

Shape = tuple[int, ...]


class Form(Protocol):
    """How a published tensor holds the numbers of one of our parameters."""

    def shape(self, ours: Shape) -> Shape:
        """Shape of the published tensor for a parameter of the shape `ours`."""
        ...

    def load(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        """Published tensor -> our parameter."""
        ...

    def save(self, ours: np.ndarray) -> np.ndarray:
        """Our parameter -> published tensor; the inverse of `load`."""
        ...


@dataclasses.dataclass(frozen=True)
class Same:
    """The same array."""

    def shape(self, ours: Shape) -> Shape:
        return ours

    def load(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.reshape(ours)

    def save(self, ours: np.ndarray) -> np.ndarray:
        return ours


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix `[outputs, inputs]`, as PyTorch's `Linear` keeps it, of our kernel `[*inputs, *outputs]`.

    Attributes:
        inputs: how many axes of our kernel are inputs.
        paired: the rows of each head stand as RoPE pairs (2i, 2i+1) there, where ours are (i, i + h/2).
    """

    inputs: int = 1
    paired: bool = False

    def shape(self, ours: Shape) -> Shape:
        rows, columns = int(np.prod(ours[self.inputs :])), int(np.prod(ours[: self.inputs]))
        return (rows, columns)

    def load(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        kernel = theirs.T.reshape(ours)
        if self.paired:
            *lead, head_dim = ours
            kernel = kernel.reshape(*lead, head_dim // 2, 2).swapaxes(-1, -2).reshape(ours)
        return kernel

    def save(self, ours: np.ndarray) -> np.ndarray:
        shape = ours.shape
        if self.paired:
            *lead, head_dim = shape
            ours = ours.reshape(*lead, 2, head_dim // 2).swapaxes(-1, -2).reshape(shape)
        rows, columns = self.shape(shape)
        return ours.reshape(columns, rows).T


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


class TensorsError(ValueError):
    """Tensors that are missing, not known, or of another shape than the architecture says."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One correspondence, with its layer filled in."""

    theirs: str
    ours: str
    form: Form


@dataclasses.dataclass(frozen=True)
class Table:
    """All correspondences between one format and our paths of an unrolled model.

    Attributes:
        rows: `(their template, our template, form)`; `{}` stands for the layer.
        ignored: their templates that carry nothing which is not known otherwise (precomputed tables).
        tied: their name of an output head that repeats a tied embedding, if files hold one.
    """

    rows: tuple[tuple[str, str, Form], ...]
    ignored: tuple[str, ...] = ()
    tied: str | None = None

    def entry(self, ours: str) -> Entry:
        """The correspondence of one of our paths.

        Raises:
            TensorsError: the format has no name for it.
        """
        for theirs, template, form in self.rows:
            layer = _match(template, ours)
            if layer is not None:
                return Entry(theirs.format(layer), ours, form)
        raise TensorsError(f"the format has no name for the parameter {ours}")

    def load(self, tensors: Tensors, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, np.ndarray]]:
        """Our parameters, one at a time, in the order of `shapes`.

        Args:
            tensors: the open checkpoint.
            shapes: every parameter of the architecture by path.

        Raises:
            TensorsError: before anything is read, with all names that are missing, unknown or misshapen.
        """
        entries = [self.entry(path) for path in shapes]
        self.check(tensors, entries, shapes)
        for entry in entries:
            yield entry.ours, entry.form.load(tensors.read(entry.theirs), shapes[entry.ours])
        if self.tied is not None and self.tied in tensors.shapes and "head/kernel" not in shapes:
            embedding = self.entry("embed/embedding").theirs
            if not np.array_equal(tensors.read(self.tied), tensors.read(embedding)):
                raise TensorsError(
                    f"{tensors.where}: the config ties head and embedding, but {self.tied} differs from "
                    f"{embedding}: set tie_word_embeddings to false"
                )

    def check(self, tensors: Tensors, entries: Iterable[Entry], shapes: Mapping[str, Shape]) -> None:
        """Compare what a checkpoint holds with what the architecture needs; see `load`."""
        wanted = {entry.theirs: entry.form.shape(shapes[entry.ours]) for entry in entries}
        found = tensors.shapes
        unused = [
            name
            for name in found
            if name not in wanted
            and not (name == self.tied and "head/kernel" not in shapes)
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
        entries = [self.entry(path) for path in params]
        for entry in entries:
            yield entry.theirs, entry.form.save(np.asarray(params[entry.ours]))


def _match(template: str, name: str) -> str | None:
    """The layer at which a template gives this name (`""` where it has none), or None."""
    pattern = re.escape(template).replace(re.escape("{}"), r"(\d+)")
    found = re.fullmatch(pattern, name)
    return None if found is None else (found.group(1) if found.groups() else "")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f" (nearest in the file: {near[0]})" if near else ""


def _first(problems: list[str], limit: int = 20) -> str:
    more = [f"… and {len(problems) - limit} more"] if len(problems) > limit else []
    return "\n  ".join(problems[:limit] + more)
