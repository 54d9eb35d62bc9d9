"""Reading files of PyTorch's `torch.save` without running anything in them, where PyTorch is installed.

Such a file is a pickle: a program that builds what it holds. PyTorch's weights-only loader lets it build
tensors and plain values, and nothing else. This is the only place of the library that imports torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

NO_TORCH = (
    "{path} is a checkpoint of PyTorch, and PyTorch is not installed here, which alone reads such files: "
    "install it (pip install torch; the build for CPUs is enough), or save the model elsewhere as a "
    "Hugging Face folder with safetensors"
)

#: How files begin that are zip archives, as `torch.save` writes them since PyTorch 1.6.
ZIP = b"PK\x03\x04"


class PthError(ValueError):
    """A file that is no checkpoint of PyTorch, is cut off, wants to run code, or cannot be read here."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in an open file.

    Attributes:
        shape: of the tensor.
        read: the numbers in the dtype of the file; a view of the file where that is mapped.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_pth(path: str | os.PathLike[str]) -> Any:
    """What a file holds: mappings, lists and plain values as they are, each tensor in a mapping as `Stored`.

    The file is mapped: tensors are read when they are asked for. Files of PyTorch before 1.6 are read whole.

    Raises:
        PthError: PyTorch is not installed; the file is damaged, no checkpoint, or holds more than tensors and
            plain values.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        mapped = file.read(len(ZIP)) == ZIP
    try:
        import torch  # pyrefly: ignore
    except ImportError as error:
        raise PthError(NO_TORCH.format(path=path)) from error
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can end in any of them
        raise PthError(f"{path} {_reason(error)}") from error

    def stored(item: Any, name: str) -> Any:
        if isinstance(item, torch.Tensor):
            tensor = item.detach()
            return Stored(tuple(tensor.shape), lambda: array(tensor, name))
        if isinstance(item, Mapping):
            return {key: stored(each, str(key)) for key, each in item.items()}
        return item

    def array(tensor: Any, name: str) -> np.ndarray:
        try:
            if tensor.dtype == torch.bfloat16:
                return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return tensor.numpy()
        except (TypeError, RuntimeError) as error:
            raise PthError(f"{path}: tensor {name} is of the kind {tensor.dtype}: {error}") from error

    return stored(held, "")


def _reason(error: Exception) -> str:
    """What is wrong with a file; PyTorch's own advice, to trust it, is not handed on."""
    said = str(error).rpartition("WeightsUnpickler error:")[2]
    wanted = re.search(r"GLOBAL (\S+)", said)
    if wanted:
        return (
            f"holds more than tensors and plain values: to be read it wants to run {wanted[1]}, which is "
            "refused; save its state dict alone"
        )
    first = next(iter(said.strip().splitlines()), "")
    return f"is no checkpoint of PyTorch, or is cut off: {type(error).__name__} {first}".rstrip()
