"""Reading and writing safetensors files, one tensor at a time, with every number in the header checked.

The format: eight bytes with the length of a JSON header, the header (name -> dtype, shape, byte range), data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class SafetensorsError(ValueError):
    """A file that is no safetensors file, is cut off, or contradicts itself."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is; offset and size in bytes, from the beginning of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    size: int


class Safetensors:
    """An open safetensors file.

    Raises:
        SafetensorsError: with the tensor, what was expected and what was found.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = str(path)
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise SafetensorsError(f"{self.where} has {size} bytes, too few for a safetensors file")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack("<Q", self._bytes[:8])
        if length > size - 8:
            raise SafetensorsError(
                f"{self.where} is cut off or no safetensors file: its header should have {length} bytes, "
                f"the file has {size}"
            )
        try:
            header = json.loads(self._bytes[8 : 8 + length])
        except ValueError as error:
            raise SafetensorsError(f"{self.where}: the header is no JSON: {error}") from error
        if not isinstance(header, dict):
            raise SafetensorsError(f"{self.where}: the header is no JSON object")
        header.pop("__metadata__", None)
        #: Every tensor by name.
        self.tensors = {name: self._info(name, told, 8 + length, size) for name, told in header.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in the dtype of the file: a read-only view of it, which costs no memory of its own."""
        if name not in self.tensors:
            raise SafetensorsError(f"{self.where} has no tensor {name!r}")
        info = self.tensors[name]
        raw = np.frombuffer(self._bytes, np.uint8, info.size, info.offset)
        return raw.view(info.dtype).reshape(info.shape)

    def _info(self, name: str, told: Any, start: int, size: int) -> TensorInfo:
        try:
            dtype, shape, (begin, end) = told["dtype"], tuple(told["shape"]), told["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
                raise ValueError("sizes must be whole numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise SafetensorsError(
                f"{self.where}: tensor {name}: expected dtype, shape and data_offsets, found {told}"
            ) from error
        if dtype not in DTYPES:
            raise SafetensorsError(
                f"{self.where}: tensor {name}: dtype {dtype!r}, expected {', '.join(DTYPES)}"
            )
        needed = math.prod(shape) * DTYPES[dtype].itemsize
        if end - begin != needed:
            raise SafetensorsError(
                f"{self.where}: tensor {name}: {dtype} {list(shape)} takes {needed} bytes, data_offsets "
                f"{[begin, end]} say {end - begin}"
            )
        if start + end > size:
            raise SafetensorsError(
                f"{self.where} is cut off: tensor {name} ends at byte {start + end}, the file has {size}"
            )
        return TensorInfo(shape, DTYPES[dtype], start + begin, needed)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a file that appears when it is complete.

    Args:
        path: of the file; replaced if it is there.
        tensors: names and arrays; transposed views cost no memory until they are written.
        metadata: text for the header, `{"format": "pt"}` by default, which `transformers` wants to see.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    arrays: list[np.ndarray] = []
    at = 0
    for name, tensor in tensors:
        array = np.asarray(tensor)
        if array.dtype not in names:
            raise SafetensorsError(f"{path}: tensor {name}: dtype {array.dtype} has no name in safetensors")
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        arrays.append(array)
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of eight, so that a reader can map it.
    text += b" " * (-len(text) % 8)
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            # Views (a transposed kernel) become a copy only here, one at a time.
            np.ascontiguousarray(array).tofile(file)
    os.replace(partial, target)
