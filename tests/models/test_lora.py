"""Adapters: what they add, what they leave alone, how they go into weights, and several in one batch."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.config import Invalid
from hllm_jax.models.config import LoRAConfig
from hllm_jax.models.layout import init_variables, parameter_axes, unstack_layers
from hllm_jax.models.lora import (
    LoRAError,
    begin_adapters,
    check_adapters,
    few_bits,
    in_few_bits,
    measure_columns,
    merge_adapters,
    rounded,
    stack_adapters,
    unmerge_adapters,
)
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.adapters import select
from hllm_jax.nn.config import Experts
from hllm_jax.nn.quantised import dequantise
from hllm_jax.testing.models import compiled, random_tokens, tiny_config, tiny_model

ALL = ("attention/*", "mlp/*", "head", "embed")
PERIOD = {"attention_pattern": ("window", "full"), "window": 8}


def fresh(spec: DecoderConfig, lora: LoRAConfig, scan: bool = False, seed: int = 1) -> dict[str, Any]:
    model, _ = tiny_model(spec, scan_layers=scan)
    boxed = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))["params"]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), boxed)
    return meta.unbox(begin_adapters(lora, zeros, jax.random.key(seed)))


def moved(adapters: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """As after training: no part is zero any more."""
    rng = np.random.default_rng(seed)

    def move(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) if path[-1].key in "ab" else leaf

    return jax.tree_util.tree_map_with_path(move, adapters)


def logits(model: Any, variables: Any, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(compiled(model)(variables, tokens)[0])


@pytest.mark.parametrize(
    ("changes", "scan", "dora"),
    [({}, False, False), ({}, False, True), ({}, True, True), (PERIOD, True, False)],
)
def test_merged_is_unmerged_and_fresh_is_nothing(changes: dict[str, Any], scan: bool, dora: bool) -> None:
    spec = tiny_config(tie_embeddings=False, **changes)
    model, params = tiny_model(spec, scan_layers=scan)
    lora = LoRAConfig(rank=3, targets=ALL[:3] if dora else ALL, dora=dora)
    begun = measure_columns({"params": params, "lora": fresh(spec, lora, scan)})["lora"]
    tokens = random_tokens(spec, 2, 9)
    plain = logits(model, {"params": params}, tokens)
    assert np.abs(logits(model, {"params": params, "lora": begun}, tokens) - plain).max() < 1e-5
    variables = {"params": params, "lora": moved(begun)}
    adapted = logits(model, variables, tokens)
    assert np.abs(adapted - plain).max() > 0.1
    merged = merge_adapters(variables)
    assert np.abs(logits(model, {"params": merged}, tokens) - adapted).max() < 2e-5
    if dora:
        with pytest.raises(LoRAError, match="keep the base"):
            unmerge_adapters({"params": merged, "lora": variables["lora"]})
    else:
        back = unmerge_adapters({"params": merged, "lora": variables["lora"]})
        assert all(
            np.abs(one - other).max() < 1e-6
            for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True)
        )


def test_both_layouts_begin_with_the_same_numbers() -> None:
    spec = tiny_config(tie_embeddings=False, **PERIOD)
    lora = LoRAConfig(rank=3, targets=ALL, rslora=True, dropout=0.1)
    unrolled, stacked = fresh(spec, lora), fresh(spec, lora, scan=True)
    same = jax.tree.map(
        lambda one, other: bool(np.array_equal(one, other)), unrolled, unstack_layers(stacked)
    )
    assert jax.tree.all(same)
    flat = flatten_dict(unrolled, sep="/")
    assert len({float(a.sum()) for path, a in flat.items() if path.endswith("query/a")}) == 2
    assert flat["layers_0/attention/query/scale"] == np.float32(32 / 3**0.5)
    assert flat["layers_0/attention/query/dropout"] == np.float32(0.1)
    a = flat["layers_1/mlp/down/a"]
    assert a.shape == (40, 3)
    assert 0.7 * 40**-0.5 < np.abs(a).max() <= 40**-0.5


def test_the_head_in_parts_has_its_adapter_too() -> None:
    spec = tiny_config(tie_embeddings=False)
    model, params = tiny_model(spec)
    variables = {"params": params, "lora": moved(fresh(spec, LoRAConfig(rank=3, targets=("head",))))}
    tokens = random_tokens(spec, 2, 9)

    def by_parts(variables: Any) -> jax.Array:
        def run(model: Any) -> jax.Array:
            x, head = model.before_head(tokens)
            return head(x)

        return jax.jit(functools.partial(model.apply, method=run))(variables)

    assert np.abs(by_parts(variables) - logits(model, variables, tokens)).max() < 1e-5


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_rows_of_one_batch_with_different_adapters(scan: bool) -> None:
    spec = tiny_config(tie_embeddings=False)
    model, params = tiny_model(spec, scan_layers=scan)
    some = [
        moved(fresh(spec, LoRAConfig(rank=2, targets=("attention/query", "embed")), scan), 1),
        moved(fresh(spec, LoRAConfig(rank=5, targets=("attention/*", "mlp/up"), alpha=3), scan), 2),
    ]
    several = stack_adapters(some)
    ids, tokens = np.array([1, 0, 1]), random_tokens(spec, 3, 9)
    mixed = logits(model, {"params": params, "lora": select(several, ids)}, tokens)
    for row, number in enumerate(ids):
        alone = logits(model, {"params": params, "lora": some[number]}, tokens)
        assert np.abs(mixed[row] - alone[row]).max() < 1e-5
    nobody = logits(model, {"params": params, "lora": select(several, np.array([-1]))}, tokens[:1])
    assert np.abs(nobody - logits(model, {"params": params}, tokens[:1])).max() < 1e-5
    assert np.isnan(
        logits(model, {"params": params, "lora": select(several, np.array([2]))}, tokens[:1])
    ).all()
    with pytest.raises(LoRAError, match="choose one"):
        merge_adapters({"params": params, "lora": several})
    dora = fresh(spec, LoRAConfig(rank=2, dora=True), scan)
    with pytest.raises(LoRAError, match="cannot be mixed"):
        stack_adapters([some[0], dora])


def test_dropout_is_that_of_training_alone() -> None:
    spec = tiny_config()
    model, params = tiny_model(spec)
    variables = {"params": params, "lora": moved(fresh(spec, LoRAConfig(rank=3, dropout=0.5)))}
    tokens = random_tokens(spec, 2, 9)
    plain = logits(model, variables, tokens)
    drawn = [
        compiled(model)(variables, tokens, deterministic=False, rngs={"dropout": jax.random.key(seed)})[0]
        for seed in range(2)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    without = {**variables, "lora": moved(fresh(spec, LoRAConfig(rank=3)))}
    assert np.array_equal(plain, logits(model, without, tokens))


@pytest.mark.parametrize(
    ("changes", "targets", "message"),
    [
        ({}, ("attention/q_proj",), "names no weight of this model; there are: attention/key, "),
        ({}, ("attention/*", "attention/norm"), "'attention/norm' names no weight"),
        ({}, ("embed",), r"this model has no head apart from it \(tied\)"),
        ({}, ("head",), "'head' names no weight"),
        ({"experts": Experts(count=4, per_token=2)}, ("mlp/*",), "'mlp/\\*' names no weight"),
    ],
)
def test_targets_that_cannot_be_are_refused(
    changes: dict[str, Any], targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LoRAError, match=message):
        fresh(tiny_config(**changes), LoRAConfig(targets=targets))


def test_a_small_change_of_a_magnitude_shows_in_bfloat16() -> None:
    """The factor of DoRA is near 1, where bfloat16 has steps of a percent."""
    spec = tiny_config()
    model, params = tiny_model(spec, dtype="bfloat16")
    adapters = fresh(spec, LoRAConfig(rank=2, dora=True, targets=("mlp/up",)))
    variables = measure_columns({"params": params, "lora": moved(adapters)})
    tokens = random_tokens(spec, 2, 9)
    before = logits(model, variables, tokens)

    def longer(path: Any, leaf: Any) -> Any:
        return leaf * 1.002 if path[-1].key == "magnitude" else leaf

    after = {**variables, "lora": jax.tree_util.tree_map_with_path(longer, variables["lora"])}
    assert 0 < np.abs(logits(model, after, tokens) - before).max() < 0.5


def test_experts_are_not_kept_in_few_bits() -> None:
    spec = tiny_config(experts=Experts(count=4, per_token=2))
    with pytest.raises(LoRAError, match="keeps no experts"):
        check_adapters(LoRAConfig(base="nf4", targets=("attention/*",)), spec)


def test_what_is_kept_in_few_bits_and_how_it_is_read_again() -> None:
    spec = tiny_config(tie_embeddings=False)
    model, params = tiny_model(spec)
    boxed = init_variables(model, jax.random.key(0))["params"]
    kept = few_bits(LoRAConfig(base="nf4"), boxed)
    assert len(kept) == 2 * 7
    assert {path.partition("/")[0] for path in kept} == {"layers_0", "layers_1"}
    axes, flat = parameter_axes(spec), flatten_dict(params, sep="/")
    again = {path: rounded(path, leaf, axes[path], "nf4") for path, leaf in flat.items()}
    assert {path for path, leaf in flat.items() if again[path] is not leaf} == set(kept)
    for path, target in kept.items():
        parts = in_few_bits(target, flat[path], "nf4")
        whole = dequantise(parts, target.matrix[0], jnp.float32)
        np.testing.assert_array_equal(again[path].reshape(whole.shape), whole)
        flat |= {f"{path}/{name}": part for name, part in parts.items()}
        del flat[path]
    # The model makes of the parts what it makes of the weights that they stand for.
    tokens = random_tokens(spec, 2, 9)
    few, many = unflatten_dict(flat, sep="/"), unflatten_dict(again, sep="/")
    apart = logits(model, {"params": few}, tokens) - logits(model, {"params": many}, tokens)
    assert np.abs(apart).max() < 1e-4
    with pytest.raises(LoRAError, match="kept in few bits"):
        merge_adapters({"params": few, "lora": fresh(spec, LoRAConfig(rank=2))})


def test_dora_of_an_embedding_is_refused() -> None:
    with pytest.raises(LoRAError, match="embed is an embedding"):
        fresh(tiny_config(tie_embeddings=False), LoRAConfig(targets=("embed",), dora=True))


@pytest.mark.parametrize(
    "values", [{"rank": 0}, {"alpha": 0.0}, {"targets": ()}, {"dropout": 1.0}], ids=lambda v: next(iter(v))
)
def test_impossible_settings(values: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=next(iter(values))):
        LoRAConfig(**values)
