"""Safetensors files: what we write others read, what others write we read, damage is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from hllm_jax.interop import Safetensors, write_safetensors
from hllm_jax.interop.safetensors import SafetensorsError

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "brain": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "ids": np.arange(4, dtype=np.int64),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def test_what_we_write_the_published_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    transposed = ARRAYS["matrix"].T
    write_safetensors(path, [*ARRAYS.items(), ("transposed", transposed)])
    read = safetensors.numpy.load_file(path)
    assert read.keys() == {*ARRAYS, "transposed"}
    for name, array in (*ARRAYS.items(), ("transposed", transposed)):
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_what_the_published_library_writes_we_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata={"a": "b"})
    file = Safetensors(path)
    assert file.shapes == {name: array.shape for name, array in ARRAYS.items()}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(file.read(name), array)
        assert file.read(name).dtype == array.dtype
    with pytest.raises(SafetensorsError, match="no tensor 'x'"):
        file.read("x")


def test_a_file_cut_off_anywhere_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS.items())
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(SafetensorsError, match=r"x\.safetensors"):
            Safetensors(path)


def header(told: Any, data: int = 16) -> bytes:
    text = json.dumps(told).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (struct.pack("<Q", 2**60) + b"{}", "its header should have"),
        (struct.pack("<Q", 4) + b"abcd", "the header is no JSON"),
        (header([1]), "no JSON object"),
        (header({"w": {"dtype": "F32"}}), "tensor w: expected dtype, shape and data_offsets"),
        (
            header({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}),
            "takes 16 bytes",
        ),
        (header({"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}), "w ends at byte"),
        (header({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}), "expected dtype, shape"),
        (header({"w": {"dtype": "F8", "shape": [4], "data_offsets": [0, 4]}}), "dtype 'F8'"),
    ],
)
def test_lies_are_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsError, match=says):
        Safetensors(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS.items())
    before = path.read_bytes()
    with pytest.raises(SafetensorsError, match="complex64"):
        write_safetensors(path, [("w", np.zeros(3, np.complex64))])
    assert path.read_bytes() == before
