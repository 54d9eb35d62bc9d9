"""A program follows the platform it is traced for, which need not be the one that traces it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.models import Execution
from hllm_jax.nn import Embed, Linear, rope_angles
from hllm_jax.nn.attention import attention
from hllm_jax.nn.target import compiling_for, target_platform


def test_the_default_is_the_backend_of_the_process() -> None:
    assert target_platform() == jax.default_backend()
    with compiling_for("tpu"):
        assert target_platform() == "tpu"
        with compiling_for("gpu"):
            assert target_platform() == "gpu"
        assert target_platform() == "tpu"
    assert target_platform() == jax.default_backend()


@pytest.mark.parametrize(
    ("platform", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_the_default_dtype_is_that_of_the_target(platform: str, dtype: str) -> None:
    with compiling_for(platform):
        assert Execution().resolve() == dataclasses.replace(Execution(), dtype=dtype)


def test_leading_axes_stay_apart_where_each_may_be_sharded() -> None:
    linear, x = Linear((8,), (4,), ("embed", "mlp")), jnp.ones((2, 3, 8))
    variables = linear.init(jax.random.key(0), x)
    for platform, shape in (("cpu", "f32[6,4]"), ("tpu", "f32[2,3,4]")):
        with compiling_for(platform):
            program = str(jax.make_jaxpr(lambda x: linear.apply(variables, x))(x))
        assert f"{shape} = dot_general" in program, platform


def test_a_kernel_is_chosen_for_the_target() -> None:
    q = jnp.ones((1, 16, 2, 8))
    with compiling_for("tpu"):
        splash = str(jax.make_jaxpr(lambda q: attention(q, q, q))(q))
    blocked = str(jax.make_jaxpr(lambda q: attention(q, q, q))(q))
    assert "splash" in splash
    assert "splash" not in blocked


def test_cosines_in_a_loop_are_the_same() -> None:
    positions = jnp.asarray(np.random.default_rng(0).integers(0, 100, (2, 7)), jnp.int32)
    results = []
    for platform in ("cpu", "tpu"):
        with compiling_for(platform):
            results.append(rope_angles(positions, 8, 1e4))
    for cpu, other in zip(*results, strict=True):
        np.testing.assert_allclose(cpu, other, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [10, 11])
@pytest.mark.parametrize("rows", [(1, 1), (2, 7), (1, 129)])
@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_a_table_on_the_left_in_parts_gives_the_same_logits(
    rows: tuple[int, int], vocabulary: int, dtype: str, apart: float
) -> None:
    """By parts are few rows of an even vocabulary, as the two numbers of a part show in the program."""
    embed = Embed(vocabulary, 6, dtype=dtype)
    variables = embed.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(*rows, 6)), dtype)
    attend = functools.partial(embed.apply, method="attend")
    by_parts = f"2,{vocabulary // 2},6" in str(jax.make_jaxpr(attend)(variables, x))
    assert by_parts == (rows != (1, 129) and vocabulary == 10)
    table = np.asarray(variables["params"]["embedding"].value, np.float64)
    exact = np.asarray(x, np.float64) @ table.T
    np.testing.assert_allclose(attend(variables, x), exact, atol=apart)
    with compiling_for("tpu"):
        np.testing.assert_allclose(attend(variables, x), exact, atol=apart)
