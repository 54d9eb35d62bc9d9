"""Weights are read one tensor after another: what is held beside the placed ones is counted."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.interop import GGUF, HFFolder, MetaCheckpoint, save_hf
from hllm_jax.interop.gguf_export import save_gguf
from hllm_jax.interop.models import read_params
from hllm_jax.models.families import llama
from hllm_jax.models.families.llama_meta import META_NAMES
from hllm_jax.models.layout import flat_unrolled
from hllm_jax.testing.models import tiny_config, tiny_model
from tests.interop.test_meta import shards

CONFIG = tiny_config(vocab_size=500, embed=64, head_dim=16, mlp=96, tie_embeddings=False)


class Counting:
    """A checkpoint that counts the bytes of tensors which it read and nobody has let go of."""

    def __init__(self, tensors: Any) -> None:
        self.tensors, self.where, self.shapes = tensors, tensors.where, tensors.shapes
        self.held = self.most = self.reads = 0

    def read(self, name: str) -> np.ndarray:
        array = self.tensors.read(name)
        owner = array
        while owner.base is not None and isinstance(owner.base, np.ndarray):
            owner = owner.base
        if owner.flags.owndata:
            self.reads += 1
            self.held += owner.nbytes
            self.most = max(self.most, self.held)
            weakref.finalize(owner, self.let_go, owner.nbytes)
        return array

    def let_go(self, size: int) -> None:
        self.held -= size


@pytest.mark.parametrize("scan", [False, True])
def test_a_gguf_file_holds_one_dequantised_tensor_at_a_time(scan: bool, tmp_path: Path) -> None:
    _, params = tiny_model(CONFIG)
    save_gguf(tmp_path / "model.gguf", CONFIG, params, kind="Q8_0")
    tensors = Counting(GGUF(tmp_path / "model.gguf"))
    placed: dict[str, tuple[int, ...]] = {}

    def place(path: str, array: np.ndarray) -> tuple[int, ...]:
        placed[path] = array.shape
        return array.shape

    read_params(llama.GGUF_NAMES, tensors, CONFIG, scan, place=place)
    largest = max(int(np.prod(shape)) for shape in tensors.shapes.values()) * 4
    assert tensors.reads == len(tensors.shapes)
    assert tensors.most <= 1.2 * largest
    assert len(placed) == (3 + 9 if scan else 3 + 9 * CONFIG.layers)


def test_a_safetensors_file_is_only_looked_at(tmp_path: Path) -> None:
    _, params = tiny_model(CONFIG)
    save_hf(tmp_path, CONFIG, params)
    tensors = Counting(HFFolder(tmp_path))
    views: list[bool] = []

    def place(path: str, array: np.ndarray) -> str:
        views.append(not array.flags.owndata and not array.flags.writeable)
        return path

    read_params(llama.HF_NAMES, tensors, CONFIG, place=place)
    assert tensors.reads == 0
    assert all(views)
    assert len(views) == 3 + 9 * CONFIG.layers


def test_of_shards_one_joined_tensor_is_held_at_a_time() -> None:
    _, params = tiny_model(CONFIG)
    files = shards(dict(META_NAMES.save(flat_unrolled(params))), 2)
    tensors = Counting(MetaCheckpoint("7b", files, {"dim": CONFIG.embed}))
    placed: list[str] = []

    def place(path: str, array: np.ndarray) -> str:
        placed.append(path)
        return path

    read_params(META_NAMES, tensors, CONFIG, place=place)
    largest = max(int(np.prod(shape)) for shape in tensors.shapes.values()) * 4
    assert tensors.reads >= 2 + 7 * CONFIG.layers
    assert tensors.most <= 1.2 * largest
    assert len(placed) == 3 + 9 * CONFIG.layers


def test_without_a_place_the_arrays_are_their_own(tmp_path: Path) -> None:
    _, params = tiny_model(CONFIG)
    save_hf(tmp_path, CONFIG, params)
    read = read_params(llama.HF_NAMES, HFFolder(tmp_path), CONFIG)
    kernel = read["layers_0"]["mlp"]["up"]["kernel"]
    assert kernel.flags.owndata
    assert kernel.flags.c_contiguous
    np.testing.assert_array_equal(kernel, params["layers_0"]["mlp"]["up"]["kernel"])
