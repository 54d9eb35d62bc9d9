"""Reading GGUF files, the format of llama.cpp (ggml's docs/gguf.md, versions 2 and 3, little-endian).

Nothing a file says about itself is believed: every count, length, type and offset is checked against the
bytes that are there before it is used, so that a truncated or lying file ends in an error that names the
place. Tensors are read one at a time out of a memory map.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Codes of metadata values: struct format of the scalars, then string and array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# The shortest key with the shortest value, and the shortest description of a tensor, in bytes.
SHORTEST_ENTRY, SHORTEST_TENSOR = 13, 24
MAX_NESTING = 4

#: Values that are dequantised at a time.
RUN = 1 << 16


class GGUFError(ValueError):
    """A file that is no GGUF file, is cut off, or contradicts itself."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes:
        name: in the file.
        shape: slowest axis first, as in NumPy (the file says it the other way round).
        kind: name of the storage type, `"F32"`, `"Q4_1"`, …
        offset, size: in bytes, from the beginning of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    size: int


class GGUF:
    """An open GGUF file: `metadata`, `tensors`, and `read(name)` for one tensor as float32.

    Args:
        path: of the file.

    Raises:
        GGUFError: with the place, what was expected and what was found.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = str(path)
        with Path(path).open("rb") as file:
            self.file_size = os.fstat(file.fileno()).st_size
            if self.file_size == 0:
                raise GGUFError(f"{self.where} is empty")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        self._doing = "the header"
        count, entries = self._header()
        #: Every metadata key and its value (numbers, text, flat or nested lists).
        self.metadata: dict[str, Any] = self._entries(entries)
        #: Every tensor by name.
        self.tensors: dict[str, TensorInfo] = self._tensors(count)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised: float32, slowest axis first.

        Raises:
            GGUFError: no such tensor, or a storage type that cannot be dequantised here.
        """
        if name not in self.tensors:
            raise GGUFError(f"{self.where} has no tensor {name!r}")
        from gguf import GGMLQuantizationType
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        info = self.tensors[name]
        raw = np.frombuffer(self._bytes, np.uint8, info.size, info.offset)
        if info.kind == "F32":
            return raw.view("<f4").reshape(info.shape).copy()
        code = GGMLQuantizationType[info.kind]
        block, block_bytes = GGML_QUANT_SIZES[code]
        flat = np.empty(math.prod(info.shape), np.float32)
        # Blocks do not cross rows, so any run of blocks will do; a short one stays in the cache of a core.
        run = max(1, RUN // block)
        for first in range(0, info.size // block_bytes, run):
            piece = raw[first * block_bytes : (first + run) * block_bytes]
            try:
                flat[first * block : (first + run) * block] = dequantize(piece, code)
            except NotImplementedError as error:
                raise GGUFError(f"{self.where}: tensor {name} is stored as {info.kind}: {error}") from error
        return flat.reshape(info.shape)

    # -- parts of the file, in their order ----------------------------------------------------------------

    def _header(self) -> tuple[int, int]:
        magic = bytes(self._take(4))
        if magic != MAGIC:
            raise GGUFError(f"{self.where} is no GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise GGUFError(f"{self.where} is big-endian; only little-endian GGUF files are read")
        if version not in VERSIONS:
            raise GGUFError(f"{self.where} has GGUF version {version}; versions {VERSIONS} are read")
        tensors, entries = self._number("Q"), self._number("Q")
        self._fits(tensors, SHORTEST_TENSOR, "tensors")
        self._fits(entries, SHORTEST_ENTRY, "metadata entries")
        return tensors, entries

    def _entries(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for i in range(count):
            self._doing = f"metadata entry {i} of {count}"
            key = self._text()
            self._doing = f"metadata {key!r}"
            if key in metadata:
                raise self._error("the key is there twice")
            metadata[key] = self._value(self._number("I"), 0)
        return metadata

    def _tensors(self, count: int) -> dict[str, TensorInfo]:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise GGUFError(f"{self.where}: general.alignment is {alignment!r}, expected a power of two")
        told = [self._told(i, count) for i in range(count)]
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, size, relative in told:
            offset = start + relative
            if name in tensors:
                raise GGUFError(f"{self.where}: tensor {name} is there twice")
            if relative % alignment:
                raise GGUFError(
                    f"{self.where}: tensor {name} begins at {relative}, not a multiple of {alignment}"
                )
            if offset + size > self.file_size:
                raise GGUFError(
                    f"{self.where} is cut off or lies about its sizes: tensor {name} ({kind} {list(shape)}) "
                    f"takes the bytes {offset} to {offset + size}, the file has {self.file_size}"
                )
            tensors[name] = TensorInfo(name, shape, kind, offset, size)
        by_place = sorted(tensors.values(), key=lambda info: info.offset)
        for before, after in itertools.pairwise(by_place):
            if before.offset + before.size > after.offset:
                raise GGUFError(
                    f"{self.where}: tensor {before.name} ({before.kind} {list(before.shape)}) ends at byte "
                    f"{before.offset + before.size}, inside {after.name}, which begins at {after.offset}"
                )
        return tensors

    def _told(self, i: int, count: int) -> tuple[str, tuple[int, ...], str, int, int]:
        """What the file says of one tensor: name, shape, kind, bytes, offset in the data."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self._doing = f"the description of tensor {i} of {count}"
        name = self._text()
        self._doing = f"the description of tensor {name}"
        axes = self._number("I")
        if not 1 <= axes <= 4:
            raise self._error(f"{axes} axes, expected 1 to 4")
        sizes = [self._number("Q") for _ in range(axes)]
        code = self._number("I")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError as error:
            raise self._error(f"storage type {code} is not known") from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if min(sizes) < 1 or sizes[0] % block:
            raise self._error(f"shape {sizes[::-1]} cannot be stored as {kind.name} in blocks of {block}")
        size = math.prod(sizes) // block * block_bytes
        return name, tuple(sizes[::-1]), kind.name, size, self._number("Q")

    # -- values -------------------------------------------------------------------------------------------

    def _value(self, code: int, depth: int) -> Any:
        if code in SCALARS:
            return self._number(SCALARS[code])
        if code == STRING:
            return self._text()
        if code != ARRAY:
            raise self._error(f"value type {code} is not known")
        if depth == MAX_NESTING:
            raise self._error(f"lists nested deeper than {MAX_NESTING}")
        item, count = self._number("I"), self._number("Q")
        if item in SCALARS:
            self._fits(count, struct.calcsize("<" + SCALARS[item]), "items")
            kind = np.dtype(SCALARS[item]).newbyteorder("<")
            return np.frombuffer(self._take(count * kind.itemsize), kind).tolist()
        self._fits(count, 8 if item == STRING else 12, "items")
        if item == STRING:
            return [self._text() for _ in range(count)]
        return [self._value(item, depth + 1) for _ in range(count)]

    def _text(self) -> str:
        length = self._number("Q")
        raw = self._take(length)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"text that is not UTF-8: {bytes(raw[:40])!r}") from error

    def _number(self, form: str) -> Any:
        form = "<" + form
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > self.file_size:
            raise self._error(
                f"{count} bytes needed, {self.file_size - self._at} are left: the file is cut off"
            )
        taken = self._bytes[self._at : end]
        self._at = end
        return taken

    def _fits(self, count: int, least: int, what: str) -> None:
        left = self.file_size - self._at
        if count * least > left:
            raise self._error(f"{count} {what} cannot stand in the {left} bytes that are left")

    def _error(self, message: str) -> GGUFError:
        return GGUFError(f"{self.where}, {self._doing}, byte {self._at}: {message}")
