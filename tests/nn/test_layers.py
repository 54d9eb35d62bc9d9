"""Norm, linear map, embedding and cache by themselves, against NumPy."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn import MLP, Embed, KVCache, LayerCache, LayerNorm, Linear, RMSNorm
from hllm_jax.nn.linear import product


def test_rms_norm_takes_its_statistics_in_float32() -> None:
    """Values near 300 have squares that bfloat16 and float16 cannot hold."""
    x = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32) * 300
    scale = np.linspace(0.5, 2, 64, dtype=np.float32)
    expected = x / np.sqrt((x.astype(float) ** 2).mean(-1, keepdims=True) + 1e-5) * scale
    with jax.numpy_dtype_promotion("strict"):
        out = RMSNorm().apply({"params": {"scale": scale}}, x)
        low = RMSNorm(dtype=jnp.float16).apply({"params": {"scale": scale}}, x.astype(np.float16))
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert low.dtype == jnp.float16
    np.testing.assert_allclose(low.astype(np.float32), expected, rtol=5e-3, atol=5e-3)


def test_layer_norm_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 16)).astype(np.float32) * 30 + 200
    scale, bias = rng.normal(size=(2, 16)).astype(np.float32)
    mean, variance = x.astype(float).mean(-1, keepdims=True), x.astype(float).var(-1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-12) * scale + bias
    with jax.numpy_dtype_promotion("strict"):
        out = LayerNorm(eps=1e-12).apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(out, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("relu", lambda x: np.maximum(x, 0)),
        ("gelu", lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
@pytest.mark.parametrize("gated", [True, False])
def test_mlp_with_every_activation(name: str, formula, gated: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    layer = MLP(4, 6, activation=name, gated=gated, use_bias=True)
    params = nn.unbox(layer.init(jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    wide = {key: x.astype(float) @ p["kernel"] + p["bias"] for key, p in params.items() if key != "down"}
    inner = formula(wide["gate"]) * wide["up"] if gated else formula(wide["up"])
    expected = inner @ params["down"]["kernel"] + params["down"]["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=2e-5)


def test_rms_norm_of_zeros_is_zeros_with_finite_gradients() -> None:
    norm, params = RMSNorm(), {"params": {"scale": jnp.ones(4)}}
    x = jnp.zeros((1, 1, 4))
    np.testing.assert_array_equal(norm.apply(params, x), 0.0)
    assert np.isfinite(jax.grad(lambda x: norm.apply(params, x).sum())(x)).all()


def test_linear_contracts_the_last_axes_with_the_first_of_the_kernel() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(3, 4, 6, 7))
    layer = Linear((3, 4), (6, 7), ("heads", "head_dim", "embed", "mlp"))
    out = layer.apply({"params": {"kernel": kernel.astype(np.float32)}}, x.astype(np.float32))
    np.testing.assert_allclose(out, np.einsum("blij,ijkm->blkm", x, kernel), atol=1e-4)


def test_the_highest_precision_sums_more_exactly_and_the_default_is_one_product() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(64, 1500)).astype(np.float32), rng.normal(size=(1500, 96)).astype(np.float32)
    exact = x.astype(float) @ kernel.astype(float)
    errors = {}
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision):
            errors[precision] = np.sqrt(np.mean((np.asarray(jax.jit(product)(x, kernel)) - exact) ** 2))
            assert ("scan" in str(jax.make_jaxpr(product)(x, kernel))) == (precision == "highest")
    assert errors["highest"] < errors["default"] * 0.75


def test_linear_can_be_intercepted_without_the_model_knowing() -> None:
    """What an adapter needs: the module, its kernel's path, its input and its output."""
    seen: list[tuple[str, ...]] = []

    def double(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, Linear) and context.method_name == "__call__":
            seen.append(context.module.path)
            return out * 2
        return out

    layer = MLP(4, 6)
    x = jnp.ones((1, 2, 4))
    params = nn.unbox(layer.init(jax.random.key(0), x))
    plain = layer.apply(params, x)
    with nn.intercept_methods(double):
        changed = layer.apply(params, x)
    assert seen == [("gate",), ("up",), ("down",)]
    assert not np.allclose(plain, changed)


def test_logits_of_a_bfloat16_embedding_are_summed_in_float32() -> None:
    table = np.random.default_rng(0).normal(size=(10, 256)).astype(np.float32)
    layer, params = Embed(10, 256, dtype=jnp.bfloat16), {"params": {"embedding": table}}
    x = layer.apply(params, jnp.asarray([[3, 4]]))
    assert x.dtype == jnp.bfloat16
    logits = layer.apply(params, x, method="attend")
    assert logits.dtype == jnp.float32
    exact = np.asarray(x, np.float32) @ np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32).T
    np.testing.assert_allclose(logits, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stacked", [False, True])
def test_the_cache_writes_each_token_to_its_slot_and_nothing_else(stacked: bool) -> None:
    rng = np.random.default_rng(0)
    held = rng.normal(size=(3, 2, 2, 5, 4)).astype(np.float32)  # layers B K S h
    turned = held.swapaxes(-1, -2)
    new = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)  # B L K h
    slots = np.asarray([[3, 4, 5], [-1, 0, 2]], np.int32)
    layer = 1
    if stacked:
        cache = LayerCache(jnp.asarray(turned), jnp.asarray(held), jnp.asarray(slots), jnp.int32(layer))
    else:
        cache = LayerCache(jnp.asarray(turned[layer]), jnp.asarray(held[layer]), jnp.asarray(slots))
    after = cache.append(jnp.asarray(new), jnp.asarray(-new))
    keys, values = after.read()
    expected = held.copy()
    for b, t in ((0, 0), (0, 1), (1, 1), (1, 2)):  # slot 5 is beyond the end, -1 is padding
        expected[layer, b, :, slots[b, t]] = new[b, t]
    turned = expected.swapaxes(-1, -2)
    np.testing.assert_array_equal(after.keys, turned if stacked else turned[layer])
    np.testing.assert_array_equal(keys, turned[layer])
    np.testing.assert_array_equal(values[0, :, 3], -new[0, 0])
    np.testing.assert_array_equal(values[0, :, 2], held[layer, 0, :, 2])


def test_slots_follow_what_is_there_and_skip_padding_on_either_side() -> None:
    cache = KVCache((jnp.zeros((3, 1, 2, 9)),), (jnp.zeros((3, 1, 9, 2)),), jnp.asarray([0, 4, 2], jnp.int32))
    segments = jnp.asarray([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], jnp.int32)
    slots, lengths = cache.slots(jnp.zeros((3, 4), jnp.int32), segments)
    np.testing.assert_array_equal(slots, [[-1, -1, 0, 1], [4, 5, 6, -1], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(lengths, [2, 7, 2])
    slots, lengths = cache.slots(jnp.zeros((3, 2), jnp.int32), None)
    np.testing.assert_array_equal(slots, [[0, 1], [4, 5], [2, 3]])
    longer = cache.grow(12)
    assert (cache.capacity, longer.capacity) == (9, 12)
    assert (longer.keys[0].shape, longer.values[0].shape) == ((3, 1, 2, 12), (3, 1, 12, 2))


@pytest.mark.parametrize("stacked", [False, True])
def test_rows_of_a_cache_can_be_taken_in_any_order(stacked: bool) -> None:
    held = jnp.arange(2 * 3 * 1 * 2 * 2, dtype=jnp.float32).reshape(2, 3, 1, 2, 2)
    layers = held if stacked else tuple(held)
    cache = KVCache(layers, layers, jnp.asarray([5, 6, 7], jnp.int32)).take(jnp.asarray([2, 2, 0, 1]))
    np.testing.assert_array_equal(cache.lengths, [7, 7, 5, 6])
    np.testing.assert_array_equal(np.asarray(cache.keys)[:, 0], held[:, 2])
    np.testing.assert_array_equal(np.asarray(cache.values)[:, 3], held[:, 1])
