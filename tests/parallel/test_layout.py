"""Layouts: shapes and shardings first, and arrays that do not depend on the mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.parallel import LayoutError, MeshConfig, everything, matching, merge, split
from hllm_jax.testing.training import Bigram, ToyBatches, toy_layout
from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer


def local_bytes(tree: object) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_initial_weights_do_not_depend_on_the_mesh() -> None:
    """The same random bits on every mesh; turning them into normals may round the last bit another way."""
    one = toy_layout(devices=1).init(3)
    for strategy in ("ddp", "zero3", "tensor"):
        many = toy_layout(strategy, 8).init(3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one, many)


def test_zero_stages_hold_a_part() -> None:
    whole = toy_layout("ddp", 8).init(0)
    size = local_bytes(whole.trainable)
    vectors = whole.trainable["params"]["scale"].nbytes  # they are not divided
    for strategy, of_params, of_optimizer in (("zero1", 1, 8), ("zero2", 1, 8), ("zero3", 8, 8)):
        state = toy_layout(strategy, 8).init(0)
        assert local_bytes(state.trainable) == vectors + (size - vectors) / of_params
        assert abs(local_bytes(state.opt_state) - 2 * (vectors + (size - vectors) / of_optimizer)) < 16


def test_abstract_state_is_the_state() -> None:
    layout = toy_layout("zero3", 8)
    state = layout.init(0)
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), layout.abstract_state)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_every_optimizer_has_a_layout(name: str) -> None:
    optimizer = make_optimizer(OptimizerConfig(name=name), ScheduleConfig(), 10)
    layout = toy_layout("zero3", 8, optimizer)
    moment = [
        leaf
        for leaf in jax.tree.leaves(layout.abstract_state.opt_state)
        if leaf.shape == (64, 32) and leaf.sharding.spec != jax.sharding.PartitionSpec()
    ]
    assert moment, name


def test_what_does_not_divide_is_refused_with_numbers() -> None:
    with pytest.raises(LayoutError, match=r"embed = 36 .* = 8: the nearest that divides is 6, or embed = 40"):
        toy_layout("zero3", 8, model=Bigram(embed=36))
    with pytest.raises(LayoutError, match="vocab = 60"):
        toy_layout("tensor", 8, model=Bigram(vocab_size=60))


def test_batch_that_does_not_divide_names_the_nearest() -> None:
    layout = toy_layout("ddp", 8)
    layout.check_batch(32, 4)
    with pytest.raises(LayoutError, match=r"batch_size=40 .*accumulation=2.*over 8 .*; 32 or 48"):
        layout.check_batch(40, 2)


def test_local_rows_are_all_rows_of_one_process() -> None:
    assert toy_layout("ddp", 8).local_rows(16) == slice(0, 16)
    assert toy_layout("tensor", 8).local_rows(4) == slice(0, 4)


def test_put_spreads_rows() -> None:
    placed = toy_layout("zero3", 8).put(ToyBatches()[0])
    assert placed["tokens"].addressable_shards[0].data.shape == (1, 16)


def test_loaded_weights_are_placed_and_checked() -> None:
    source = jax.tree.map(np.asarray, toy_layout().init(7).trainable["params"])
    layout = toy_layout("zero3", 8)
    state = layout.init(0, load=source)
    jax.tree.map(np.testing.assert_array_equal, state.trainable["params"], source)
    assert int(state.step) == 0
    wrong = {"embedding": source["embedding"], "kernel": source["kernel"].T, "extra": source["scale"]}
    with pytest.raises(LayoutError, match=r"(?s)missing: params/scale.*unexpected: params/extra.*\(64, 32\)"):
        layout.init(0, load=wrong)


def test_split_and_merge() -> None:
    variables = {"params": {"a": jnp.ones(1), "b": {"c": jnp.zeros(2)}}, "lora": {"a": jnp.ones(3)}}
    trainable, frozen = split(variables, matching("lora", "params/b"))
    assert jax.tree.structure(trainable) == jax.tree.structure({"params": {"b": {"c": 0}}, "lora": {"a": 0}})
    assert merge(trainable, frozen) == variables
    assert split(variables, everything) == (variables, {})
    with pytest.raises(ValueError, match="matches none of the 3 variables"):
        split(variables, matching("adapters"))


def test_mesh_of_two_axes() -> None:
    state = toy_layout("zero3", 8, mesh=MeshConfig(fsdp=4, tensor=2)).init(0)
    assert state.trainable["params"]["kernel"].addressable_shards[0].data.shape == (8, 32)


def test_what_is_fresh_comes_from_the_seed_and_the_rest_is_loaded() -> None:
    layout = toy_layout("zero3", 8)
    drawn, other = (jax.device_get(layout.init(seed).variables["params"]) for seed in (3, 4))
    loaded = {name: leaf for name, leaf in other.items() if name != "kernel"}
    state = layout.init(3, loaded, matching("params/kernel"))
    for name, source in (("kernel", drawn), ("embedding", other), ("scale", other)):
        here = state.variables["params"][name]
        np.testing.assert_array_equal(here, source[name])
        assert here.sharding == layout.shardings.variables["params"][name]
    with pytest.raises(LayoutError, match="missing: params/kernel"):
        layout.init(3, loaded)


def test_a_value_a_row_and_several_a_position_are_placed_too() -> None:
    batch = {"labels": np.arange(8), "positions": np.zeros((8, 16, 2), np.int32)}
    placed = toy_layout("zero3", 8).put(batch)
    assert {shard.data.shape for shard in placed["labels"].addressable_shards} == {(1,)}
    assert {shard.data.shape for shard in placed["positions"].addressable_shards} == {(1, 16, 2)}
