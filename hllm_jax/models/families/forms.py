"""How published tensors hold the numbers of our parameters: transposed, in another order, joined, shifted."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]


class Form(Protocol):
    """A two-way layout between the tensors of one row of a table."""

    def shapes(self, ours: Sequence[Shape], count: int) -> list[Shape]:
        """Shapes of the `count` published tensors for parameters of the shapes `ours`."""
        ...

    def load(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """Published tensors -> our parameters."""
        ...

    def save(self, ours: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """Our parameters -> the `count` published tensors; the inverse of `load`."""
        ...


class OneToOne(abc.ABC):
    """A form between one tensor and one parameter: its subclasses say the three parts for one array."""

    @abc.abstractmethod
    def shape(self, ours: Shape) -> Shape:
        """Shape of the published tensor for a parameter of the shape `ours`."""

    @abc.abstractmethod
    def read(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        """Published tensor -> our parameter."""

    @abc.abstractmethod
    def write(self, ours: np.ndarray) -> np.ndarray:
        """Our parameter -> published tensor."""

    def shapes(self, ours: Sequence[Shape], count: int) -> list[Shape]:
        """See `Form`."""
        assert len(ours) == count == 1
        return [self.shape(ours[0])]

    def load(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """See `Form`."""
        return [self.read(theirs[0], ours[0])]

    def save(self, ours: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """See `Form`."""
        assert len(ours) == count == 1
        return [self.write(ours[0])]


@dataclasses.dataclass(frozen=True)
class Same(OneToOne):
    """The same array.

    Attributes:
        offset: what is added to theirs (Gemma keeps the scale of a norm minus one).
        lead: further leading axes of length 1 that theirs has.
    """

    offset: float = 0.0
    lead: int = 0

    def shape(self, ours: Shape) -> Shape:
        return (1,) * self.lead + ours

    def read(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        theirs = theirs.reshape(ours)
        if not self.offset:
            return theirs
        # Near the offset a narrow float has few digits for what is added to it.
        return theirs.astype(np.promote_types(theirs.dtype, np.float32)) + np.float32(self.offset)

    def write(self, ours: np.ndarray) -> np.ndarray:
        ours = ours.reshape(self.shape(ours.shape))
        if not self.offset:
            return ours
        wide = ours.astype(np.promote_types(ours.dtype, np.float32)) - np.float32(self.offset)
        return wide.astype(ours.dtype)


@dataclasses.dataclass(frozen=True)
class Matrix(OneToOne):
    """A matrix of our kernel `[*inputs, *outputs]`: `[outputs, inputs]`, as PyTorch's `Linear` keeps it.

    Attributes:
        inputs: how many axes of our kernel are inputs.
        transposed: false: the matrix is `[inputs, outputs]` (the `Conv1D` of GPT-2).
        paired: coordinates of each head stand as RoPE pairs (2i, 2i+1) there, where ours are (i, i + h/2).
    """

    inputs: int = 1
    transposed: bool = True
    paired: bool = False

    def shape(self, ours: Shape) -> Shape:
        rows, columns = int(np.prod(ours[: self.inputs])), int(np.prod(ours[self.inputs :]))
        return (columns, rows) if self.transposed else (rows, columns)

    def read(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        kernel = (theirs.T if self.transposed else theirs).reshape(ours)
        return _unpaired(kernel) if self.paired else kernel

    def write(self, ours: np.ndarray) -> np.ndarray:
        kernel = _paired(ours) if self.paired else ours
        matrix = kernel.reshape(int(np.prod(ours.shape[: self.inputs])), -1)
        return matrix.T if self.transposed else matrix


@dataclasses.dataclass(frozen=True)
class Vector(OneToOne):
    """A flat vector of our bias `[*outputs]`; `paired` as for `Matrix`."""

    paired: bool = False

    def shape(self, ours: Shape) -> Shape:
        return (int(np.prod(ours)),)

    def read(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        bias = theirs.reshape(ours)
        return _unpaired(bias) if self.paired else bias

    def write(self, ours: np.ndarray) -> np.ndarray:
        return (_paired(ours) if self.paired else ours).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Joined:
    """One tensor that holds several parameters one after another (query, key and value; gate and up).

    Attributes:
        part: the form of each of them.
        axis: along which they are joined: 0 for matrices `[outputs, inputs]` and vectors, 1 for `Conv1D`.
    """

    part: OneToOne
    axis: int = 0

    def shapes(self, ours: Sequence[Shape], count: int) -> list[Shape]:
        """See `Form`."""
        assert count == 1
        parts = [self.part.shape(shape) for shape in ours]
        whole = list(parts[0])
        whole[self.axis] = sum(part[self.axis] for part in parts)
        return [tuple(whole)]

    def load(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """See `Form`."""
        sizes = [self.part.shape(shape)[self.axis] for shape in ours]
        parts = np.split(theirs[0], np.cumsum(sizes)[:-1], axis=self.axis)
        return [self.part.read(part, shape) for part, shape in zip(parts, ours, strict=True)]

    def save(self, ours: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """See `Form`."""
        assert count == 1
        return [np.concatenate([self.part.write(array) for array in ours], axis=self.axis)]


@dataclasses.dataclass(frozen=True)
class Each:
    """As many tensors as parameters, each in the same form: those that a file has together or not at all."""

    part: OneToOne

    def shapes(self, ours: Sequence[Shape], count: int) -> list[Shape]:
        """See `Form`."""
        assert len(ours) == count
        return [self.part.shape(shape) for shape in ours]

    def load(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """See `Form`."""
        return [self.part.read(tensor, shape) for tensor, shape in zip(theirs, ours, strict=True)]

    def save(self, ours: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """See `Form`."""
        assert len(ours) == count
        return [self.part.write(array) for array in ours]


@dataclasses.dataclass(frozen=True)
class Batched(OneToOne):
    """One tensor with our leading axis (experts), each entry of which has the form `part`."""

    part: OneToOne

    def shape(self, ours: Shape) -> Shape:
        return (ours[0], *self.part.shape(ours[1:]))

    def read(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return np.stack([self.part.read(each, ours[1:]) for each in theirs])

    def write(self, ours: np.ndarray) -> np.ndarray:
        return np.stack([self.part.write(each) for each in ours])


@dataclasses.dataclass(frozen=True)
class Separate:
    """One tensor of the form `part` for each entry of our leading axis (experts), `{each}` in its name."""

    part: OneToOne

    def shapes(self, ours: Sequence[Shape], count: int) -> list[Shape]:
        """See `Form`."""
        assert len(ours) == 1
        return [self.part.shape(ours[0][1:])] * count

    def load(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """See `Form`."""
        return [np.stack([self.part.read(each, ours[0][1:]) for each in theirs])]

    def save(self, ours: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """See `Form`."""
        assert len(ours) == 1
        assert len(ours[0]) == count
        return [self.part.write(each) for each in ours[0]]


def _unpaired(x: np.ndarray) -> np.ndarray:
    """Last axis from (2i, 2i+1) to (i, i + h/2)."""
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)


def _paired(x: np.ndarray) -> np.ndarray:
    """The inverse of `_unpaired`."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)
