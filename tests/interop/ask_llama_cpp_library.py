"""Asks llama.cpp's library for the log-probabilities of an encoder-decoder; runs in the peers environment.

Its server knows decoders and encoders only, so the functions of `llama.h` are called, which `xllamacpp` has
inside. Standard input is `[{"path": file.gguf, "read": [id, …], "written": [id, …], "vocabulary": n}, …]` as
JSON, standard output a list of log-probabilities after what is written, for each file.
"""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import POINTER, c_char_p, c_float, c_int32, c_void_p
from typing import Any

import numpy as np
import xllamacpp

LIBRARY = ctypes.CDLL(xllamacpp.xllamacpp.__file__)

#: In int32: `llama_context_params` of the version that requirements/peers.in pins.
FLASH_ATTENTION, TYPE_K, TYPE_V = 13, 26, 27


class Params(ctypes.Structure):
    """`llama_model_params` or `llama_context_params`, and space behind: such a structure is passed in memory,
    and the library reads and writes no more of it than it knows."""

    _fields_ = (("numbers", c_int32 * 1024),)


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (("count", c_int32), ("token", POINTER(c_int32)), *((name, c_void_p) for name in "abcde"))


def function(name: str, result: Any, *arguments: Any) -> Any:
    """One of `llama.h`."""
    found = getattr(LIBRARY, name)
    found.restype, found.argtypes = result, arguments
    return found


def log_probabilities(path: str, read: list[int], written: list[int], vocabulary: int) -> list[float]:
    """Of the id after `written`, when `read` was read."""
    model = function("llama_model_load_from_file", c_void_p, c_char_p, Params)(
        path.encode(), function("llama_model_default_params", Params)()
    )
    assert model, f"{path} was not loaded"
    params = function("llama_context_default_params", Params)()
    found = [params.numbers[i] for i in (FLASH_ATTENTION, TYPE_K, TYPE_V)]
    assert found == [-1, 1, 1], f"not automatic attention and half floats, but {found}"
    params.numbers[FLASH_ATTENTION] = params.numbers[TYPE_K] = params.numbers[TYPE_V] = 0
    context = function("llama_init_from_model", c_void_p, c_void_p, Params)(model, params)
    assert context, f"{path} does not run"
    for name, row in (("llama_encode", read), ("llama_decode", written)):
        tokens = (c_int32 * len(row))(*row)
        batch = function("llama_batch_get_one", Batch, POINTER(c_int32), c_int32)(tokens, len(row))
        status = function(name, c_int32, c_void_p, Batch)(context, batch)
        assert status == 0, f"{name} returned {status}"
    logits = function("llama_get_logits", POINTER(c_float), c_void_p)(context)
    said = np.ctypeslib.as_array(logits, (vocabulary,)).astype(np.float64)
    return (said - np.logaddexp.reduce(said)).tolist()


def main() -> None:
    """One file after the other."""
    answers = [log_probabilities(**asked) for asked in json.load(sys.stdin)]
    sys.stdout.write("ANSWERS" + json.dumps(answers))


if __name__ == "__main__":
    main()
