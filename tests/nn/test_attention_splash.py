"""The TPU kernel, interpreted, is the plain one: forward and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn.attention import attention

CASES: list[tuple[int, int, dict[str, Any], bool]] = [
    (128, 2, {}, False),
    (200, 1, {}, True),  # a length that the kernel's blocks do not divide
    (128, 2, {"window": 40}, True),
    (65, 2, {"softcap": 5.0}, False),
    (130, 1, {"causal": False}, False),
    (128, 2, {"causal": False}, True),
]


@pytest.mark.parametrize(("length", "kv_heads", "options", "packed"), CASES)
def test_splash_is_plain(length: int, kv_heads: int, options: dict[str, Any], packed: bool) -> None:
    rng = np.random.default_rng(length)
    q, weight = (jnp.asarray(rng.normal(size=(2, length, 2, 16)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, length, kv_heads, 16)), jnp.float32) for _ in range(2))
    segments = None
    if packed:
        cut = np.array([[length // 3], [length // 2]])
        places = np.arange(length)[None, :]
        segments = jnp.asarray(np.where(places < cut, 1, 2) * (places < length - 3), jnp.int32)

    def value(kernel: Any) -> Any:
        def scalar(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            y = attention(q, k, v, segment_ids=segments, kernel=kernel, **options)
            if segments is not None:
                y = jnp.where((segments != 0)[:, :, None, None], y, 0.0)
            return jnp.sum(y * weight), y

        return jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    (_, wanted), gradients = value("plain")
    (_, given), of_kernel = value("splash")
    np.testing.assert_allclose(given, wanted, rtol=0, atol=2e-5)
    for a, b in zip(of_kernel, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
