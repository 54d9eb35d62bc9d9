"""Checkpoints: what is committed survives, what is not does not exist, and mistakes have a name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hllm_jax.parallel import MeshConfig, TrainState, matching
from hllm_jax.testing.training import Bigram, toy_layout
from hllm_jax.training import CheckpointError, Checkpoints, OptimizerConfig, ScheduleConfig, make_optimizer
from hllm_jax.training import checkpoints as module
from hllm_jax.training.checkpoints import MANIFEST, MARK, items, read_manifest, read_variables


def at(state: TrainState, step: int) -> TrainState:
    return state.replace(step=np.int32(step) + state.step)


def save_steps(folder: Path, *steps: int, **settings: Any) -> Checkpoints:
    state = toy_layout().init(0)
    checkpoints = Checkpoints(folder, **settings)
    for step in steps:
        checkpoints.save(at(state, step), {"tokens": step})
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize(
    ("strategy", "devices", "mesh"),
    [
        ("ddp", 1, None),
        ("zero3", 8, None),
        ("tensor", 8, None),
        ("zero3", 8, MeshConfig(fsdp=4, tensor=2)),
        ("zero1", 8, MeshConfig(data=2, fsdp=2, tensor=2)),
    ],
)
def test_saved_on_eight_devices_opens_on_any_mesh(
    tmp_path: Path, strategy: Any, devices: int, mesh: MeshConfig | None
) -> None:
    state = toy_layout("zero3", 8, mesh=MeshConfig(fsdp=4, tensor=2)).init(5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(state, 3), {})
    layout = toy_layout(strategy, devices, mesh=mesh)
    restored, _ = checkpoints.restore(layout)
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 3))
    assert jax.tree.map(lambda x: (x.dtype, x.sharding), restored) == jax.tree.map(
        lambda x: (x.dtype, x.sharding), layout.abstract_state
    )


def test_every_leaf_of_the_state_is_saved_and_weights_open_as_numpy(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    state = toy_layout().init(0)
    manifest = read_manifest(checkpoints.path(1))
    assert len(manifest.arrays) == len(jax.tree.leaves(state)) == len(items(state))
    variables = read_variables(checkpoints.path(1))
    assert {type(leaf) for leaf in jax.tree.leaves(variables)} == {np.ndarray}
    jax.tree.map(np.testing.assert_array_equal, variables, state.variables)


def test_newest_and_best_stay(tmp_path: Path) -> None:
    state = toy_layout().init(0)
    with Checkpoints(tmp_path, keep=2, best="eval/loss") as checkpoints:
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, float("nan")), (5, 2.5)):
            checkpoints.save(at(state, step), {})
            checkpoints.record(step, {"eval/loss": loss})
    checkpoints.record(5, {})
    assert checkpoints.steps() == [2, 4, 5]
    assert read_manifest(checkpoints.path(2)).metrics == {"eval/loss": 1.0}


@pytest.mark.parametrize("left", [[], ["saving.json.partial"], ["saving.json", "arrays"]])
def test_a_save_that_was_killed_is_not_in_the_way(tmp_path: Path, left: list[str]) -> None:
    """As after a kill before the mark was written, while it was, and later."""
    (tmp_path / "00000002").mkdir()
    for name in left:
        (tmp_path / "00000002" / name).write_text("{}")
    checkpoints = Checkpoints(tmp_path)
    assert not checkpoints.path(2).exists()
    assert save_steps(tmp_path, 1, 2).steps() == [1, 2]


def test_retention_deletes_only_ours(tmp_path: Path) -> None:
    for name in ("00000000", "mine", "00000099"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("precious")
    checkpoints = save_steps(tmp_path, 1, 2, 3, keep=1)
    assert checkpoints.steps() == [3]
    for name in ("00000000", "mine", "00000099"):
        assert (tmp_path / name / "notes.txt").read_text() == "precious"
    with pytest.raises(CheckpointError, match="in the way and was not made by hllm_jax"):
        checkpoints.save(at(toy_layout().init(0), 99), {})


def test_leftovers_of_a_killed_save_are_not_listed_and_go(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    half = tmp_path / "00000002"
    (half / "arrays").mkdir(parents=True)
    (half / MARK).write_text("{}")
    assert Checkpoints(tmp_path, own=False).steps() == [1]
    assert half.exists()
    with pytest.raises(CheckpointError, match="was never finished"):
        read_manifest(half)
    assert Checkpoints(tmp_path).latest() == 1
    assert not half.exists()


def test_the_same_step_is_saved_once(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    assert checkpoints.save(at(toy_layout().init(0), 1), {}) is False


def test_error_in_the_background_is_raised_and_the_old_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save_steps(tmp_path, 1)
    layout = toy_layout()
    real = module.commit

    def full(folder: Path, manifest: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "commit", full)
    checkpoints.save(at(layout.init(0), 2), {})
    checkpoints._thread.join()  # type: ignore[union-attr]
    with pytest.raises(
        CheckpointError, match=r"saving step 2 .*No space left on device.*step 1 is saved and intact"
    ):
        checkpoints.check()
    assert checkpoints.steps() == [1]
    assert not checkpoints.path(2).exists()
    monkeypatch.setattr(module, "commit", real)
    restored, _ = checkpoints.restore(layout)
    assert int(restored.step) == 1
    checkpoints.save(at(layout.init(0), 3), {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_damage_is_named(tmp_path: Path) -> None:
    layout = toy_layout()
    checkpoints = save_steps(tmp_path, 1, 2)
    path = largest(checkpoints.path(2) / "arrays")
    content = path.read_bytes()

    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match=r"was changed since it was written.*delete .*00000002"):
        checkpoints.restore(layout)
    path.write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match=f"has {len(content) - 7} bytes, {len(content)} were written"):
        checkpoints.restore(layout)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoints.restore(layout)
    (checkpoints.path(2) / MANIFEST).write_text('{"format": ')
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.restore(layout)
    assert int(checkpoints.restore(layout, 1)[0].step) == 1


def test_deleted_underneath(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .*there are \[1\]"):
        checkpoints.restore(toy_layout(), 7)
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        checkpoints.restore(toy_layout())


def test_another_shape_or_optimizer_is_named(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"trainable/params/embedding: .*64, 32.* there, .*64, 40.* in the model"
    ):
        checkpoints.restore(toy_layout(model=Bigram(embed=40)))
    lion = make_optimizer(OptimizerConfig(name="lion"), ScheduleConfig(), 10)
    with pytest.raises(CheckpointError, match=r"unexpected: .*nu"):
        checkpoints.restore(toy_layout(optimizer=lion))


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    manifest = read_manifest(checkpoints.path(1))
    arrays = {name: what for name, what in manifest.arrays.items() if not name.startswith("optimizer/")}
    module.commit(checkpoints.path(1), dataclasses.replace(manifest, arrays=arrays))
    with pytest.raises(CheckpointError, match=r"weights only.*model.load="):
        checkpoints.restore(toy_layout())


def test_frozen_variables_are_saved_too(tmp_path: Path) -> None:
    layout = toy_layout(trainable=matching("params/scale"))
    state = layout.init(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    restored, _ = checkpoints.restore(layout)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_saving_does_not_see_the_next_update(tmp_path: Path) -> None:
    """The state is donated right after `save` returns; what is written is the state of before."""
    from hllm_jax.testing.training import ToyBatches, toy_step

    layout = toy_layout("zero3", 8)
    step, state = toy_step(layout), layout.init(0)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        copies = []
        for n in range(4):
            copies.append(jax.tree.map(np.array, state))
            checkpoints.save(state, {})
            state, _ = step(state, layout.put(ToyBatches()[n]))
    for n, copy in enumerate(copies):
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(layout, n)[0], copy)


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 4)
    raw = json.loads((checkpoints.path(4) / MANIFEST).read_text())
    assert raw["step"] == 4
    assert raw["facts"] == {"tokens": 4}
    assert raw["arrays"]["trainable/params/kernel"] == [[32, 64], "float32"]
