"""LLaMA as Meta, llama2.c and the book hand it out: `.pth` files, whole or one for each device of a group.

- Meta: a folder with `params.json`, `consolidated.00.pth`, `consolidated.01.pth`, … and `tokenizer.model`;
- llama2.c: a file with the dicts `model` (tensors) and `model_args` (what Meta has in params.json);
- the book: a file with the tensors alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm_jax.interop.hf import read_json
from hllm_jax.interop.pth import Stored, read_pth
from hllm_jax.models.families.llama_meta import META_PREFIXES, SPLIT, params_of
from hllm_jax.models.families.table import TensorsError

if TYPE_CHECKING:
    from hllm_jax.models.families.forms import Shape

PARAMS, SHARD = "params.json", "consolidated.{:02d}.pth"


class MetaCheckpoint:
    """An open checkpoint: `Tensors` in Meta's names, and `params`.

    Args:
        where: the file or folder, for messages.
        files: what each file holds (see `read_pth`), by its path; several are the shards of one model, in
            order.
        params: Meta's params.json, or what of it is known where the tensors come alone.

    Raises:
        TensorsError: a file holds no state dict, a shard is missing, shards differ, or no shape says a size
            that is needed.
    """

    def __init__(self, where: str, files: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> None:
        self.where = where
        self._shards = {file: _state(file, held) for file, held in files.items()}
        given = {**(params or {}), **_section(next(iter(files.values())), "model_args")}
        _complete(where, self._shards, given)
        first = next(iter(self._shards.values()))
        #: Shape of every tensor.
        self.shapes: Mapping[str, Shape] = {name: self._shape(name) for name in first}
        #: The keys of Meta's params.json.
        self.params: dict[str, Any] = given
        if "dim" not in given:
            self.params = params_of(self, given.get("n_heads")) | given

    def read(self, name: str) -> np.ndarray:
        """One tensor in the dtype of its file, joined where it lies in shards."""
        if name not in self.shapes:
            raise TensorsError(f"{self.where} has no tensor {name!r}")
        parts = [shard[name].read() for shard in self._shards.values()]
        axis = self._axis(name)
        if len(parts) == 1:
            return parts[0]
        if axis is not None:
            return np.concatenate(parts, axis)
        for file, part in zip(self._shards, parts, strict=True):
            if not np.array_equal(part, parts[0]):
                raise TensorsError(f"{self.where}: {name} differs in {file} from that of the other shards")
        return parts[0]

    def _shape(self, name: str) -> Shape:
        shapes = {file: shard[name].shape for file, shard in self._shards.items()}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{list(shape)} in {file}" for file, shape in shapes.items())
            raise TensorsError(f"{self.where}: {name} has another shape in each shard: {listed}")
        shape, axis = list(next(iter(shapes.values()))), self._axis(name)
        if axis is not None:
            shape[axis] *= len(self._shards)
        return tuple(shape)

    def _axis(self, name: str) -> int | None:
        """Along which axis shards hold parts of a tensor; None: each holds all of it."""
        first = next(iter(self._shards.values()))
        rank = len(first[name].shape)
        axis = SPLIT.get(name.removesuffix(".weight").rpartition(".")[2])
        if axis == "embedding":
            # LLaMA 1 and 2 cut the channels, later ones the vocabulary.
            norm = first.get("norm.weight")
            axis = 0 if norm is not None and first[name].shape[1:] == norm.shape else 1
        return axis if isinstance(axis, int) and axis < rank else None


def open_meta(path: str | os.PathLike[str]) -> MetaCheckpoint:
    """Open a folder of Meta's, or one file; a params.json beside a file says what its tensors do not.

    Raises:
        PthError: PyTorch is not installed, or a file is not what it is to be.
        FolderError: params.json is no JSON.
        TensorsError: a shard is missing; see `MetaCheckpoint`.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    params = read_json(folder / PARAMS) if (folder / PARAMS).is_file() else None
    names = [path.name] if path != folder else _shards_in(folder)
    return MetaCheckpoint(str(path), {str(folder / name): read_pth(folder / name) for name in names}, params)


def _shards_in(folder: Path) -> list[str]:
    """The files of the shards, of which none between the first and the last may be missing."""
    found = {file.name for file in folder.glob("consolidated.*.pth")}
    wanted = [SHARD.format(number) for number in range(max(1, len(found)))]
    missing = [name for name in wanted if name not in found]
    if missing:
        held = ", ".join(sorted(found)) or "no shard; a file of another name is itself the MODEL"
        raise TensorsError(f"{folder}: {missing[0]} is missing, there is {held}")
    return wanted


def _complete(where: str, shards: Mapping[str, Mapping[str, Stored]], params: Mapping[str, Any]) -> None:
    """Compare the shards with each other, and their number with what the queries of the first say it is."""
    first = next(iter(shards.values()))
    for file, shard in shards.items():
        differ = sorted(first.keys() ^ shard.keys())
        if differ:
            raise TensorsError(
                f"{where}: {file} and the first shard do not both hold {', '.join(differ[:5])}"
            )
    query = first.get("layers.0.attention.wq.weight")
    if query is None or len(query.shape) != 2 or not query.shape[0]:
        return
    rows, whole = query.shape
    heads, head_size = params.get("n_heads"), params.get("head_dim")
    if isinstance(heads, int) and isinstance(head_size, int):
        whole = heads * head_size
    count = whole // rows
    if whole % rows == 0 and count != len(shards):
        raise TensorsError(
            f"{where}: the first file has {rows} of {whole} rows of the queries, so there are to be {count} "
            f"shards ({SHARD.format(0)} to {SHARD.format(count - 1)} in a folder with {PARAMS}); there are "
            f"{len(shards)}"
        )


def _state(where: str, held: Any) -> dict[str, Stored]:
    """The tensors of a file under the names that they had before PyTorch's wrappers."""
    if not isinstance(held, Mapping):
        raise TensorsError(f"{where} holds a {type(held).__name__}, expected a dict of tensors")
    tensors = _section(held, "model") or held
    state: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Stored):
            listed = ", ".join(map(str, list(tensors)[:8]))
            raise TensorsError(
                f"{where} holds {listed}: expected tensors by name, or a dict 'model' of them; {name!r} is a "
                f"{type(tensor).__name__}"
            )
        state[_unwrapped(str(name))] = tensor
    if not state:
        raise TensorsError(f"{where} holds no tensors")
    return state


def _section(held: Any, name: str) -> Mapping[str, Any]:
    section = held.get(name) if isinstance(held, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _unwrapped(name: str) -> str:
    bare = name
    for prefix in META_PREFIXES:
        bare = bare.removeprefix(prefix)
    return bare if bare == name else _unwrapped(bare)
