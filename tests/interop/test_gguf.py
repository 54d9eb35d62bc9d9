"""GGUF files as they should be, cut off at every byte, and lying in every number they state."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.interop import GGUF, GGUFError
from tests.interop.doubles import gguf_bytes

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.eps": 0.5,
    "flag": True,
    "tokens": ["a", "中文", ""],
    "types": [1, -2, 3],
}
NUMBERS = np.arange(96, dtype=np.float32).reshape(3, 32) - 40
TENSORS: dict[str, tuple[str, tuple[int, ...], bytes]] = {
    "first": ("F32", (3, 32), NUMBERS.tobytes()),
    "half": ("F16", (2, 5), np.arange(10, dtype=np.float16).tobytes()),
    "last": ("F32", (4,), np.arange(4, dtype=np.float32).tobytes()),
}


def opened(tmp_path: Path, content: bytes) -> GGUF:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return GGUF(path)


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_are_read(version: int, tmp_path: Path) -> None:
    file = opened(tmp_path, gguf_bytes(METADATA, TENSORS, version=version))
    assert file.metadata == METADATA
    assert file.shapes == {"first": (3, 32), "half": (2, 5), "last": (4,)}
    np.testing.assert_array_equal(file.read("first"), NUMBERS)
    np.testing.assert_array_equal(file.read("half"), np.arange(10, dtype=np.float32).reshape(2, 5))
    assert {file.read(name).dtype for name in file.tensors} == {np.dtype("float32")}
    with pytest.raises(GGUFError, match="no tensor 'second'"):
        file.read("second")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "BF16", "F16"])
def test_dequantisation_is_the_published_one(kind: str, tmp_path: Path) -> None:
    """Against the `gguf` package by rows, and near the numbers that were quantised."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    numbers = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    raw = quantize(numbers, GGMLQuantizationType[kind])
    file = opened(tmp_path, gguf_bytes({}, {"w": (kind, (6, 64), raw.tobytes())}))
    read = file.read("w")
    np.testing.assert_array_equal(read, dequantize(raw, GGMLQuantizationType[kind]))
    steps = {"Q4_0": 8, "Q4_1": 15, "Q8_0": 127, "BF16": 256, "F16": 2048}
    assert np.abs(read - numbers).max() <= np.ptp(numbers) / steps[kind]


def test_a_file_cut_off_anywhere_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole = gguf_bytes(METADATA, TENSORS)
    ends_with_padding = len(whole) - 16
    opened(tmp_path, whole[:ends_with_padding])
    counted = 0
    for length in range(0, ends_with_padding, 3):
        with pytest.raises(GGUFError, match=r"model\.gguf"):
            opened(tmp_path, whole[:length])
        counted += 1
    assert counted > 150


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"tensors": 2**40}, r"1099511627776 tensors cannot stand in the \d+ bytes"),
        ({"entries": 2**63}, "metadata entries cannot stand"),
        ({"tensors": 4}, "the description of tensor 3 of 4|is not known|axes|there twice"),
        ({("first", "shape"): (3, 2**40)}, r"first \(F32 \[3, 1099511627776\]\) takes the bytes"),
        ({("first", "shape"): (4, 32)}, r"first \(F32 \[4, 32\]\) takes the bytes"),
        ({("first", "shape"): (0, 32)}, "cannot be stored as F32"),
        ({("first", "shape"): (1, 1, 1, 1, 1)}, "5 axes, expected 1 to 4"),
        ({("last", "offset"): 2**50}, "tensor last .* takes the bytes"),
        ({("last", "offset"): 7}, "last begins at 7, not a multiple of 32"),
        (
            {("half", "offset"): 0},
            r"first \(F32 \[3, 32\]\) ends at byte \d+, inside half",
        ),
        ({("first", "type"): 77}, "storage type 77 is not known"),
        ({("half", "type"): 3}, "cannot be stored as Q4_1 in blocks of 32"),
    ],
)
def test_lies_about_counts_shapes_and_places(claims: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=says):
        opened(tmp_path, gguf_bytes(METADATA, TENSORS, claims=claims))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(40), "is no GGUF file: it begins with"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf_bytes({"general.alignment": 24}, {}), "general.alignment is 24, expected a power of two"),
        (gguf_bytes({"a": 1}, {}).replace(b"\x04\0\0\0\x01\0\0\0", b"\x63\0\0\0\x01\0\0\0"), "value type 99"),
        (gguf_bytes({"ab": 1}, {}).replace(b"ab", b"\xff\xfe"), "not UTF-8"),
        (gguf_bytes({"ab": 1, "ac": 1}, {}).replace(b"ac", b"ab"), "'ab', byte .* there twice"),
    ],
)
def test_damaged_headers(content: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=says):
        opened(tmp_path, content)


def test_lists_that_lie_about_their_length_or_nest_without_end(tmp_path: Path) -> None:
    text = struct.pack("<Q", 1) + b"k"
    long = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text + struct.pack("<IIQ", 9, 5, 2**61)
    with pytest.raises(GGUFError, match=r"'k', byte .* items cannot stand in the 0 bytes"):
        opened(tmp_path, long)
    deep = (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000
    )
    with pytest.raises(GGUFError, match="nested deeper than 4"):
        opened(tmp_path, deep)


def test_random_damage_never_ends_in_anything_but_our_error(tmp_path: Path) -> None:
    whole, rng = bytearray(gguf_bytes(METADATA, TENSORS)), np.random.default_rng(0)
    head = len(whole) - 500
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, head, 3):
            damaged[place] = rng.integers(0, 256)
        try:
            file = opened(tmp_path, bytes(damaged))
            for name in file.tensors:
                file.read(name)
        except GGUFError:
            refused += 1
    assert refused > 150
