"""Initialisation as the papers have it, leaf by leaf; axis names on every parameter; the tie is one leaf."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.models import Decoder, DecoderConfig, Execution
from hllm_jax.nn import ACTIVATION_AXES, PARAMETER_AXES
from hllm_jax.testing.models import random_tokens, tiny_model

WIDE = DecoderConfig(
    vocab_size=500, layers=8, embed=128, heads=8, kv_heads=4, head_dim=32, mlp=256, tie_embeddings=False
)


@pytest.mark.parametrize("scan", [False, True])
def test_standard_deviation_of_every_leaf(scan: bool) -> None:
    wide = dataclasses.replace(WIDE, layers=8 if scan else 2)
    model = Decoder(wide, Execution(dtype="float32", scan_layers=scan))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    leaves = flatten_dict(params)
    assert len(leaves) == (12 if scan else 3 + 9 * wide.layers)
    for path, leaf in leaves.items():
        if path[-1] == "scale":
            np.testing.assert_array_equal(leaf, 1.0)
            continue
        into_residual = path[-3:-1] in (("attention", "out"), ("mlp", "down"))
        expected = 0.02 / math.sqrt(2 * wide.layers) if into_residual else 0.02
        assert np.std(leaf) == pytest.approx(expected, rel=0.03), path
        assert abs(float(np.mean(leaf))) < expected / 20, path


def test_scores_that_are_not_scaled_begin_with_a_smaller_query() -> None:
    wide = dataclasses.replace(WIDE, layers=1, attention_scale=1.0)
    model = Decoder(wide, Execution(dtype="float32"))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    drawn = params["layers_0"]["attention"]
    assert np.std(drawn["query"]["kernel"]) == pytest.approx(0.02 / math.sqrt(32), rel=0.03)
    assert np.std(drawn["key"]["kernel"]) == pytest.approx(0.02, rel=0.03)


def test_layers_of_a_scan_are_drawn_apart() -> None:
    model = Decoder(WIDE, Execution(dtype="float32", scan_layers=True))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    kernel = np.asarray(params["layers"]["mlp"]["up"]["kernel"])
    assert all(np.abs(kernel[0] - kernel[i]).max() > 1e-3 for i in range(1, WIDE.layers))


def test_the_variance_of_the_residual_stream_stays_flat_over_depth() -> None:
    spreads = []
    for layers in (2, 16):
        spec = DecoderConfig(
            vocab_size=200, layers=layers, embed=64, heads=4, kv_heads=4, mlp=128, init_std=0.1
        )
        model = Decoder(spec, Execution(dtype="float32", scan_layers=True))
        spreads.append(stream_variance(model, random_tokens(spec, 2, 16)))
    assert spreads[1] / spreads[0] == pytest.approx(1.0, rel=0.25)


def stream_variance(model: Decoder, tokens: np.ndarray) -> float:
    """Mean square of what the last layer of a fresh model hands to the final norm."""

    @jax.jit
    def last(key: jax.Array, tokens: jax.Array) -> jax.Array:
        params = nn.unbox(model.init(key, tokens)["params"])
        _, state = model.apply(
            {"params": params}, tokens, capture_intermediates=is_block, mutable=["intermediates"]
        )
        ((out, _),) = state["intermediates"]["layers"]["__call__"]
        return jnp.mean(jnp.square(out[-1]))

    return float(last(jax.random.key(0), jnp.asarray(tokens)))


def is_block(module: nn.Module, method: str) -> bool:
    """The one scanned block."""
    return module.name == "layers"


def test_a_tied_head_is_one_leaf_and_learns_from_both_ends() -> None:
    spec = DecoderConfig(vocab_size=50, layers=1, embed=16, heads=2, kv_heads=1, mlp=24)
    model = Decoder(spec, Execution(dtype="float32"))
    tokens = jnp.asarray([[1, 2, 3]], jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    assert set(params) == {"embed", "layers_0", "final_norm"}
    assert sum(x.size for x in jax.tree.leaves(params)) == spec.parameters()
    gradient = jax.jit(jax.grad(lambda p: model.apply({"params": p}, tokens)[0][0, :, 7].sum()))(params)
    rows = np.abs(gradient["embed"]["embedding"]).max(axis=1)
    assert set(np.nonzero(rows)[0]) == {1, 2, 3, 7}


@pytest.mark.parametrize("scan", [False, True])
def test_every_parameter_names_its_axes(scan: bool) -> None:
    model = Decoder(WIDE, Execution(dtype="float32", scan_layers=scan))
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    names = flatten_dict(nn.get_partition_spec(boxed)["params"])
    shapes = flatten_dict(nn.unbox(boxed)["params"])
    assert names.keys() == shapes.keys()
    for path, spec in names.items():
        assert len(spec) == shapes[path].ndim, path
        assert set(spec) <= set(PARAMETER_AXES), path
        assert (spec[0] == "layers") == (scan and path[0] == "layers"), path
    assert not set(PARAMETER_AXES) & set(ACTIVATION_AXES)


def test_constraints_reach_the_activations_under_a_mesh() -> None:
    devices = np.asarray(jax.devices()[:4]).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "tensor"))
    rules = (("batch", "data"), ("act_heads", "tensor"), ("act_mlp", "tensor"), ("act_vocab", "tensor"))
    spec = DecoderConfig(vocab_size=64, layers=2, embed=16, heads=4, kv_heads=2, mlp=32)
    model = Decoder(spec, Execution(dtype="float32", scan_layers=True))
    _, params = tiny_model(spec, scan_layers=True)
    tokens = jnp.asarray(random_tokens(spec, 4, 8))
    alone = jax.jit(lambda p, t: model.apply({"params": p}, t)[0])(params, tokens)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        apply = jax.jit(lambda p, t: model.apply({"params": p}, t)[0])
        text = apply.lower(params, tokens).as_text()
    assert text.count("sharding") > 6, "no constraint in the program"
    np.testing.assert_allclose(apply(params, tokens), alone, atol=1e-5)
