"""A checkpoint does not know the mesh it was saved on: it opens on any other, bit-equal, and as NumPy."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from hllm_jax.parallel import Layout, MeshConfig
from hllm_jax.parallel.config import Strategy
from hllm_jax.testing.training import ToyBatches, toy_layout, toy_step
from hllm_jax.training.checkpoints import Checkpoints, items, read_variables

#: What a mesh is called: strategy, sizes of its axes, devices.
MESHES: dict[str, tuple[Strategy, MeshConfig, int]] = {
    "1": ("ddp", MeshConfig(), 1),
    "8": ("zero3", MeshConfig(), 8),
    "2x4": ("zero3", MeshConfig(data=2, fsdp=4), 8),
    "4x2": ("zero3", MeshConfig(fsdp=4, tensor=2), 8),
    "2x2x2": ("zero2", MeshConfig(data=2, fsdp=2, tensor=2), 8),
}
SAVED, OPENED = ("1", "8", "2x4"), ("1", "8", "4x2", "2x2x2")


def layout_of(name: str) -> Layout:
    strategy, mesh, devices = MESHES[name]
    return toy_layout(strategy, devices, mesh=mesh)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, np.ndarray]]]:
    """For each mesh a checkpoint after two updates, and what its arrays were."""
    found = {}
    for name in SAVED:
        folder, layout = tmp_path_factory.mktemp(name), layout_of(name)
        state, step = layout.init(0), toy_step(layout)
        for n in range(2):
            state, _ = step(state, layout.put(ToyBatches()[n]))
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(state, {})
        found[name] = (folder, jax.device_get(items(state)))
    return found


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("name", SAVED)
def test_opens_bit_equal(
    name: str, opened: str, saved: dict[str, tuple[Path, dict[str, np.ndarray]]]
) -> None:
    folder, then = saved[name]
    layout = layout_of(opened)
    state, manifest = Checkpoints(folder, own=False).restore(layout)
    assert manifest.step == 2
    now = items(state)
    assert now.keys() == then.keys()
    for key, array in now.items():
        np.testing.assert_array_equal(jax.device_get(array), then[key])
    for array, where in zip(jax.tree.leaves(state), jax.tree.leaves(layout.shardings), strict=True):
        assert array.sharding == where


@pytest.mark.parametrize("name", SAVED)
def test_opens_as_numpy(name: str, saved: dict[str, tuple[Path, dict[str, np.ndarray]]]) -> None:
    folder, then = saved[name]
    params = read_variables(folder / "00000002")["params"]
    assert params
    for key, array in params.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, then[f"trainable/params/{key}"])
