"""Hugging Face model folders: `config.json`, `*.safetensors` (whole or in shards), tokenizer files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hllm_jax.interop.safetensors import Safetensors

T = TypeVar("T")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class FolderError(ValueError):
    """A folder that is no Hugging Face model, or whose files contradict each other."""


class HFFolder:
    """An open Hugging Face folder: `config` and the tensors of all its shards.

    Raises:
        FolderError: files are missing, are no JSON, or the index does not fit the shards.
        SafetensorsError: a shard is cut off or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.where = str(path)
        #: The published config.json.
        self.config: dict[str, Any] = read_json(self.path / CONFIG)
        self._shard_of = self._shards()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor of all shards."""
        return {name: shard.tensors[name].shape for name, shard in self._shard_of.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in the dtype of its file."""
        if name not in self._shard_of:
            raise FolderError(f"{self.where} has no tensor {name!r}")
        return self._shard_of[name].read(name)

    def _shards(self) -> dict[str, Safetensors]:
        if (self.path / INDEX).exists():
            return self._indexed()
        if not (self.path / WEIGHTS).exists():
            pickled = sorted(p.name for p in self.path.glob("*.bin"))
            hint = f"; {', '.join(pickled)} is pickled code, save it as safetensors" if pickled else ""
            raise FolderError(f"{self.where} has neither {WEIGHTS} nor {INDEX}{hint}")
        file = Safetensors(self.path / WEIGHTS)
        return dict.fromkeys(file.tensors, file)

    def _indexed(self) -> dict[str, Safetensors]:
        index = read_json(self.path / INDEX)
        placed = index.get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
            raise FolderError(f"{self.path / INDEX}: expected a weight_map of names to files")
        files: dict[str, Safetensors] = {}
        for name in sorted(set(placed.values())):
            if Path(name).name != name:
                raise FolderError(f"{self.path / INDEX}: {name!r} is not the name of a file in the folder")
            if not (self.path / name).exists():
                raise FolderError(f"{self.where}: the shard {name} is missing, though {INDEX} names it")
            files[name] = Safetensors(self.path / name)
        for tensor, name in placed.items():
            if tensor not in files[name].tensors:
                raise FolderError(
                    f"{self.where}: {INDEX} says that {tensor} is in {name}, which does not hold it"
                )
        for name, file in files.items():
            extra = sorted(tensor for tensor in file.tensors if placed.get(tensor) != name)
            if extra:
                raise FolderError(
                    f"{self.where}: {name} holds tensors that {INDEX} does not place there: {extra[:5]}"
                )
        return {tensor: files[name] for tensor, name in placed.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FolderError: the file is missing or holds something else.
    """
    return _parsed(path, dict, "object")


def read_json_list(path: Path) -> list[Any]:
    """A JSON array from a file; errors as `read_json`."""
    return _parsed(path, list, "array")


def _parsed(path: Path, kind: type[T], name: str) -> T:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FolderError(f"{path.parent} has no {path.name}") from error
    except ValueError as error:
        raise FolderError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, kind):
        raise FolderError(f"{path}: expected a JSON {name}, found {type(value).__name__}")
    return value
