"""Rows whose positions lie on several devices: a ring of them gives what one device gives."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn.attention import attention
from hllm_jax.parallel import MeshConfig, make_mesh, make_rules

CASES: list[tuple[dict[str, int], int, dict[str, Any], bool]] = [
    ({"context": 2}, 2, {}, False),
    ({"context": 4, "data": 2}, 4, {"window": 9}, True),
    ({"context": 4, "tensor": 2}, 2, {"softcap": 3.0}, True),
]
MORE: list[tuple[dict[str, int], int, dict[str, Any], bool]] = [
    ({"context": 8}, 1, {}, True),
    ({"context": 2, "tensor": 4}, 2, {}, True),  # fewer key heads than devices for them
    ({"context": 4}, 2, {"causal": False}, True),
]


@pytest.mark.parametrize(
    ("sizes", "kv_heads", "options", "packed"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_a_ring_is_one_device(
    sizes: dict[str, int], kv_heads: int, options: dict[str, Any], packed: bool
) -> None:
    length, rng = 48, np.random.default_rng(sum(sizes.values()))
    q, weight = (jnp.asarray(rng.normal(size=(2, length, 4, 8)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, length, kv_heads, 8)), jnp.float32) for _ in range(2))
    segments = None
    if packed:
        cut, places = np.array([[11], [30]]), np.arange(length)[None, :]
        segments = jnp.asarray(np.where(places < cut, 1, 2) * (places < length - 3), jnp.int32)

    def scalar(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        y = attention(q, k, v, segment_ids=segments, **options)
        if segments is not None:
            y = jnp.where((segments != 0)[:, :, None, None], y, 0.0)
        return jnp.sum(y * weight), y

    both = jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True)
    (_, wanted), gradients = both(q, k, v)
    devices = int(np.prod(list(sizes.values())))
    mesh = make_mesh(MeshConfig(**sizes), "ddp", jax.devices()[:devices])
    table = list(make_rules("ddp").activations.items())

    def on_mesh(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(table):
            return both(q, k, v)

    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "context"))
    compiled = jax.jit(on_mesh, in_shardings=where).lower(q, k, v).compile()
    (_, given), of_ring = compiled(*(jax.device_put(x, where) for x in (q, k, v)))
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5)
    for a, b in zip(of_ring, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    # Keys and values go round; no device ever has a whole row of them.
    text = compiled.as_text()
    assert "collective-permute" in text
    assert f"all-gather(f32[2,{length}" not in text
