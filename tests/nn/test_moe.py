"""Mixtures of experts against a loop over tokens in NumPy: values, gradients, capacity, devices."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.models import Decoder, Execution, init_cache
from hllm_jax.nn import Experts, MixtureOfExperts
from hllm_jax.nn.grouped import Blocks, Buffers, Sorted, block_product, block_size
from hllm_jax.nn.moe import ROUTING, capacity
from hllm_jax.testing.models import compiled, random_tokens, tiny_config, tiny_model

D, F = 6, 10
FOUR = Experts(count=4, per_token=2)


def drawn(experts: Experts, seed: int = 0, gated: bool = True) -> tuple[MixtureOfExperts, dict[str, Any]]:
    """A mixture and random weights."""
    rng = np.random.default_rng(seed)
    E = experts.count
    shapes = {"router": (D, E), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    kernels = {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    if not gated:
        del kernels["gate"]
    return MixtureOfExperts(D, F, experts, gated=gated), {"params": kernels}


def by_hand(x: np.ndarray, params: dict[str, Any], per_token: int) -> np.ndarray:
    """Token by token in float64: the largest logits, a softmax over them, one expert after the other."""
    k = {name: leaf["kernel"].astype(float) for name, leaf in params["params"].items()}
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:-1]):
        token = x[place].astype(float)
        logits = token @ k["router"]
        chosen = np.argsort(-logits)[:per_token]
        weights = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
        for e, weight in zip(chosen, weights, strict=True):
            h = token @ k["up"][e]
            if "gate" in k:
                gate = token @ k["gate"][e]
                h = h * gate / (1 + np.exp(-gate))
            else:
                h = h / (1 + np.exp(-h))
            out[place] += weight * (h @ k["down"][e])
    return out


@pytest.mark.parametrize(
    ("experts", "gated"),
    [
        (FOUR, True),
        (FOUR, False),
        (Experts(count=3, per_token=1), True),
        (Experts(count=5, per_token=5), True),
    ],
)
@pytest.mark.parametrize("length", [1, 7, 150])
def test_each_token_passes_its_experts_and_no_other(experts: Experts, gated: bool, length: int) -> None:
    layer, params = drawn(experts, gated=gated)
    x = np.random.default_rng(1).normal(size=(2, length, D)).astype(np.float32)
    with jax.numpy_dtype_promotion("strict"):
        out = jax.jit(layer.apply)(params, x)
    np.testing.assert_allclose(out, by_hand(x, params, experts.per_token), atol=2e-4)


def test_padding_gives_zeros_and_changes_no_token() -> None:
    layer, params = drawn(FOUR)
    x = np.random.default_rng(1).normal(size=(2, 9, D)).astype(np.float32)
    valid = np.asarray([[True] * 9, [False] * 4 + [True] * 5])
    out = jax.jit(layer.apply)(params, x, valid)
    np.testing.assert_array_equal(out[1, :4], 0)
    np.testing.assert_allclose(np.asarray(out)[valid], by_hand(x[valid], params, 2), atol=2e-4)


def test_a_loop_of_blocks_has_the_gradients_of_the_products_one_by_one() -> None:
    rng = np.random.default_rng(0)
    blocks, kernels = rng.normal(size=(5, 3, D)), rng.normal(size=(4, D, F))
    blocks, kernels = jnp.asarray(blocks, jnp.float32), jnp.asarray(kernels, jnp.float32)
    group = jnp.asarray([0, 2, 2, 3, 3], jnp.int32)  # group 1 has no rows
    seen = rng.normal(size=(5, 3, F)).astype(np.float32)

    def loss(product: Any, blocks: jax.Array, kernels: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(product(blocks, kernels)) * seen)

    def plain(blocks: jax.Array, kernels: jax.Array) -> jax.Array:
        return jnp.stack([blocks[m] @ kernels[g] for m, g in enumerate(np.asarray(group))])

    grad = functools.partial(jax.value_and_grad, argnums=(0, 1))
    ours = grad(functools.partial(loss, lambda b, k: block_product(b, k, group)))(blocks, kernels)
    theirs = grad(functools.partial(loss, plain))(blocks, kernels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, theirs)
    np.testing.assert_array_equal(ours[1][1][1], 0)


@pytest.mark.parametrize("layout", [Blocks, Sorted, lambda g, e: Buffers.of(g, e, 24)], ids="bsc")
def test_layouts_keep_every_row_and_multiply_it_with_its_matrix(layout: Any) -> None:
    rng = np.random.default_rng(0)
    groups = rng.choice([0, 2, 3, 4], size=(2, 24)).astype(np.int32)  # 1 is empty, 4 is none
    rows = rng.normal(size=(2, 24, D)).astype(np.float32)
    kernels = jnp.asarray(rng.normal(size=(4, D, F)), jnp.float32)
    made = getattr(layout, "of", layout)(jnp.asarray(groups), 4)
    np.testing.assert_allclose(
        made.collect(made.spread(jnp.asarray(rows))), np.where(groups[..., None] < 4, rows, 0), atol=0
    )
    out = made.collect(made.product(made.spread(jnp.asarray(rows)), kernels))
    wanted = np.stack(
        [
            [row @ kernels[g] if g < 4 else np.zeros(F) for row, g in zip(own, which, strict=True)]
            for own, which in zip(rows, groups, strict=True)
        ]
    )
    np.testing.assert_allclose(out, wanted, atol=1e-5)


def test_blocks_are_small_where_groups_are_and_never_many_more_than_rows_need() -> None:
    assert [block_size(rows, 8) for rows in (2, 16, 64, 512, 4096)] == [1, 1, 4, 32, 64]
    for rows, groups in ((2, 8), (300, 8), (4096, 8), (64, 64)):
        layout = Blocks.of(jnp.zeros((1, rows), jnp.int32), groups)
        assert layout.group.size * layout.size <= rows + min(rows, groups) * (layout.size - 1)


# ---- capacity ----


def test_the_capacity_of_an_expert_worked_by_hand() -> None:
    eight = Experts(count=8, per_token=2, capacity_factor=1.25)
    assert [capacity(eight, length) for length in (1, 16, 17, 512)] == [1, 5, 6, 160]


def test_what_finds_no_place_is_dropped_in_the_order_of_tokens() -> None:
    """Two experts with two places each: the first two of each row's tokens that want them get them."""
    groups = jnp.asarray([[0, 1, 0, 0, 1, 1], [1, 1, 1, 2, 0, 1]], jnp.int32)  # 2: no group
    buffers = Buffers.of(groups, 2, 2)
    np.testing.assert_array_equal(buffers.kept, [[1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0]])
    rows = jnp.arange(1.0, 13.0).reshape(2, 6, 1)
    np.testing.assert_array_equal(buffers.spread(rows)[..., 0], [[[1, 3], [2, 5]], [[11, 0], [7, 8]]])
    np.testing.assert_array_equal(buffers.collect(buffers.spread(rows))[..., 0], rows[..., 0] * buffers.kept)


def test_room_for_all_is_no_capacity_and_a_full_expert_adds_nothing() -> None:
    x = np.random.default_rng(1).normal(size=(2, 12, D)).astype(np.float32)
    roomy, params = drawn(dataclasses.replace(FOUR, capacity_factor=2.0))
    free = jax.jit(roomy.apply)(params, x)
    np.testing.assert_allclose(
        jax.jit(functools.partial(roomy.apply, training=True))(params, x), free, atol=1e-5
    )

    tight = MixtureOfExperts(D, F, dataclasses.replace(FOUR, capacity_factor=1e-3))
    apply = jax.jit(functools.partial(tight.apply, training=True, mutable=[ROUTING]))
    out, noted = apply(params, x)
    np.testing.assert_allclose(jax.jit(tight.apply)(params, x), free, atol=1e-6)  # not while training
    # One place an expert: some token stands in it, the first of its row in both of its experts.
    np.testing.assert_allclose(out[:, 0], free[:, 0], atol=1e-5)
    (sums,) = noted[ROUTING]["sums"]
    used = np.asarray([len(set(own.tolist())) for own in _chosen(x, params)])
    np.testing.assert_allclose(sums.dropped, 12 - used / 2)


def _chosen(x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    return np.argsort(-(x @ params["params"]["router"]["kernel"]))[..., :2].reshape(len(x), -1)


def test_a_later_token_takes_no_place_from_an_earlier_one() -> None:
    config = tiny_config(experts=dataclasses.replace(FOUR, capacity_factor=0.6))
    model, params = tiny_model(config)
    tokens = random_tokens(config, 2, 12)
    apply, variables = compiled(model), {"params": params}
    changed = tokens.copy()
    changed[:, 7:] = (changed[:, 7:] + 5) % config.vocab_size
    before, after = (apply(variables, t, deterministic=False)[0] for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before - apply(variables, tokens)[0]).max() > 1e-3  # some were dropped


# ---- in a model ----


@pytest.mark.parametrize("factor", [None, 1.0])
def test_experts_that_no_token_chooses_have_zero_and_finite_gradients(factor: float | None) -> None:
    layer, params = drawn(dataclasses.replace(FOUR, capacity_factor=factor))
    router = params["params"]["router"]["kernel"]
    router[:, 2:] = 0
    router[0, :2] = 100.0  # with x[..., 0] = 1 the first two experts win everywhere
    x = np.random.default_rng(1).normal(size=(2, 9, D)).astype(np.float32)
    x[..., 0] = 1

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(layer.apply(params, x, training=True)))

    gradients = jax.jit(jax.grad(loss))(params)["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for name in ("gate", "up", "down"):
        assert np.abs(gradients[name]["kernel"][:2]).max() > 0
        np.testing.assert_array_equal(gradients[name]["kernel"][2:], 0)


def test_the_router_is_float32_in_a_bfloat16_model() -> None:
    model = Decoder(tiny_config(experts=FOUR), Execution(dtype="bfloat16", attention="plain"))
    _, params = tiny_model(tiny_config(experts=FOUR))
    jaxpr = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, jnp.zeros((1, 5), jnp.int32))[0])(params))
    assert "f32[5,4] = dot_general" in jaxpr
    top = [line for line in jaxpr.splitlines() if "top_k" in line and "=" in line]
    assert top
    assert all("bf16" not in line for line in top)


@pytest.mark.parametrize("scan", [False, True])
def test_cached_logits_of_a_sparse_model_are_the_uncached(scan: bool) -> None:
    config = tiny_config(experts=dataclasses.replace(FOUR, capacity_factor=1.0))
    model, params = tiny_model(config, scan_layers=scan)
    tokens = jnp.asarray(random_tokens(config, 2, 9))
    step, variables = compiled(model), {"params": params}
    whole, _ = step(variables, tokens)
    logits, cache = step(variables, tokens[:, :5], cache=init_cache(config, 2, 9, scan_layers=scan))
    np.testing.assert_allclose(logits, whole[:, :5], atol=5e-6)
    for t in range(5, 9):
        logits, cache = step(variables, tokens[:, t : t + 1], cache=cache)
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=5e-6)


def test_parameters_and_those_that_a_token_passes() -> None:
    """By hand: 24·40 entries a matrix, three matrices an expert, a router of 24·4 a layer, two layers."""
    dense, sparse = tiny_config(), tiny_config(experts=FOUR)
    assert sparse.parameters() - dense.parameters() == 2 * (3 * 3 * 24 * 40 + 24 * 4)
    assert sparse.parameters() - sparse.active_parameters() == 2 * 2 * 3 * 24 * 40
    assert dense.active_parameters() == dense.parameters()
    assert sparse.flops_per_token(8) - dense.flops_per_token(8) == 6 * 2 * (3 * 24 * 40 + 24 * 4)


@pytest.mark.parametrize("factor", [None, 1.25])
@pytest.mark.parametrize("axes", [{"data": 8}, {"expert": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_is_unsharded(axes: dict[str, int], factor: float | None) -> None:
    from hllm_jax.parallel import MeshConfig, make_mesh, make_rules
    from hllm_jax.parallel.layout import Layout

    experts = dataclasses.replace(FOUR, capacity_factor=factor)
    model, params = tiny_model(tiny_config(layers=1, vocab_size=68, experts=experts), attention="plain")
    tokens = jnp.asarray(random_tokens(model.config, 8, 10))
    segments = jnp.asarray([[1] * 10] * 7 + [[1] * 4 + [0] * 6], jnp.int32)

    def loss(params: Any, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, Any]:
        (logits, _), noted = model.apply(
            {"params": params}, tokens, segments, deterministic=False, mutable=[ROUTING]
        )
        kept = (segments != 0).astype(jnp.float32)[..., None]
        return jnp.sum(jnp.square(logits) * kept), noted

    alone = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, tokens, segments)
    layout = Layout(make_mesh(MeshConfig(**axes)), make_rules("zero3"), model, None)

    def spread(*given: Any) -> Any:
        with layout.activations():
            return jax.value_and_grad(loss, has_aux=True)(*given)

    placed = layout.place({"params": params})["params"]
    rows = layout.put({"tokens": tokens, "segments": segments})
    given = (placed, rows["tokens"], rows["segments"])
    # Each device sorts its own tokens; places of limited number need no such split.
    assert ("shard_map" in str(jax.make_jaxpr(spread)(*given))) == (factor is None)
    together = jax.jit(spread)(*given)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), together, alone)


def test_impossible_mixtures_are_refused() -> None:
    from hllm_jax.config import Invalid

    for changes, field in (
        ({"count": 1}, "count"),
        ({"per_token": 9}, "per_token"),
        ({"capacity_factor": 0.0}, "capacity_factor"),
        ({"load_balance": -1.0}, "load_balance"),
    ):
        with pytest.raises(Invalid, match=field):
            Experts(**changes)
    with pytest.raises(Invalid, match="experts have no biases"):
        tiny_config(experts=FOUR, mlp_bias=True)


def test_a_fresh_mixture_has_the_shapes_it_says() -> None:
    layer, _ = drawn(FOUR)
    variables = nn.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 3, D))))
    assert set(variables) == {"params"}
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "router": {"kernel": (D, 4)},
        "gate": {"kernel": (4, D, F)},
        "up": {"kernel": (4, D, F)},
        "down": {"kernel": (4, F, D)},
    }
