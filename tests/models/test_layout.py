"""Stacked and unrolled parameters: a round trip in both directions, for arrays and for shapes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.models import Decoder, Execution, parameter_shapes, stack_layers, unstack_layers
from hllm_jax.models.layout import init_variables
from hllm_jax.testing.models import tiny_config, tiny_model


@pytest.mark.parametrize("period", [1, 2])
def test_stacking_is_undone_by_unstacking(period: int) -> None:
    pattern = ("full", "window")[:period]
    config = tiny_config(layers=4, attention_pattern=pattern, window=3 if period == 2 else None)
    _, unrolled = tiny_model(config)
    stacked = stack_layers(unrolled, period)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), unrolled)

    model = Decoder(config, Execution(dtype="float32", scan_layers=True))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    made = jax.tree.map(lambda x: (x.shape, x.dtype), stacked)
    assert made == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    again = stack_layers(unstack_layers(shapes), period)
    assert jax.tree.map(lambda x: x.shape, again) == jax.tree.map(lambda x: x.shape, shapes)


def test_numpy_stays_numpy() -> None:
    _, params = tiny_model()
    stacked = stack_layers(jax.tree.map(np.asarray, params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(stacked))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(unstack_layers(stacked)))


def test_shapes_are_those_of_the_parameters() -> None:
    config = tiny_config(tie_embeddings=False)
    _, params = tiny_model(config)
    found = {
        "/".join(k.key for k in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    assert parameter_shapes(config) == found


@pytest.mark.parametrize("period", [1, 2])
def test_a_seed_gives_the_same_weights_in_both_layouts(period: int) -> None:
    pattern = ("full", "window")[:period]
    config = tiny_config(layers=4, attention_pattern=pattern, window=3 if period == 2 else None)
    both = [Decoder(config, Execution(dtype="float32", scan_layers=scan)) for scan in (False, True)]
    boxed, stacked = (jax.jit(init_variables, static_argnums=0)(model, jax.random.key(5)) for model in both)
    unrolled = nn.unbox(boxed)["params"]
    jax.tree.map(np.testing.assert_array_equal, unrolled, unstack_layers(nn.unbox(stacked)["params"]))
    queries = [unrolled[f"layers_{i}"]["attention"]["query"]["kernel"] for i in range(4)]
    assert len({float(np.asarray(q).sum()) for q in queries}) == 4

    own = jax.eval_shape(both[0].init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert nn.get_partition_spec(boxed) == nn.get_partition_spec(own)
    assert jax.tree.map(jnp.shape, unrolled) == jax.tree.map(jnp.shape, nn.unbox(own)["params"])


def test_gaps_and_misfits_are_errors() -> None:
    _, params = tiny_model(tiny_config(layers=3))
    with pytest.raises(ValueError, match="no multiple of the period 2"):
        stack_layers(params, 2)
    with pytest.raises(ValueError, match="without a gap"):
        stack_layers({k: v for k, v in params.items() if k != "layers_1"})
    with pytest.raises(ValueError, match="expected stacked layers"):
        unstack_layers(params)
    other = jax.tree.map(lambda x: x[:1], params["layers_1"])
    with pytest.raises(ValueError, match="different shapes"):
        stack_layers({**params, "layers_1": other})
