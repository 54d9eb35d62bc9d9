"""Flags for overlap are appended to the user's, and the compilers know them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hllm_jax.parallel.overlap import FLAGS, appended, expected_platform, set_flags
from hllm_jax.training.platform import PlatformError, let_overlap

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "--a=true --b_c=1"),
        ("--d=2", "--d=2 --a=true --b_c=1"),
        ("--a=false", "--a=false --b_c=1"),
        ("--noa --b_c=7", "--noa --b_c=7"),
        ("--a", "--a --b_c=1"),
        ("--a_long=1 --b=3", "--a_long=1 --b=3 --a=true --b_c=1"),
    ],
)
def test_flags_of_the_user_stay(given: str, expected: str) -> None:
    assert appended(given, ("--a=true", "--b_c=1")) == expected


def test_each_platform_has_its_variable_and_cpus_none() -> None:
    environment = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false"}
    assert set_flags("cpu", environment) == []
    assert set_flags("gpu", environment) == list(FLAGS["gpu"][1][1:])
    assert environment["XLA_FLAGS"].startswith("--xla_gpu_enable_latency_hiding_scheduler=false --xla_gpu_")
    assert set_flags("gpu", environment) == [], "twice is once"
    assert set_flags("tpu", environment) == environment["LIBTPU_INIT_ARGS"].split() == list(FLAGS["tpu"][1])
    with pytest.raises(
        ValueError, match=r"XLA_FLAGS, which names a file here \(flags\.txt\): put them there"
    ):
        set_flags("gpu", {"XLA_FLAGS": "flags.txt"})


def test_the_platform_is_guessed_without_starting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for forced, wanted, expected in [
        ("cpu", "auto", "cpu"),
        ("cuda,cpu", "auto", "gpu"),
        ("", "tpu", "tpu"),
        ("cpu", "gpu", "gpu"),
    ]:
        monkeypatch.setenv("JAX_PLATFORMS", forced)
        assert expected_platform(wanted) == expected


def test_flags_that_come_too_late_are_refused() -> None:
    import jax

    assert jax.devices()
    before = dict(os.environ)
    with pytest.raises(PlatformError, match=r"comes too late: JAX has started\. Set XLA_FLAGS yourself"):
        let_overlap("gpu")
    let_overlap("cpu")
    assert dict(os.environ) == before


START = """
import os, sys
from hllm_jax.parallel.overlap import set_flags
from hllm_jax.testing.training import toy_config, toy_train

set_flags("gpu", os.environ)  # XLA reads them on every platform, and ends where it does not know one
toy_train(toy_config(sys.argv[1], "train.steps=1", "run.overlap=true"))
assert "LIBTPU_INIT_ARGS" not in os.environ
"""


@pytest.mark.slow
def test_a_run_starts_with_them(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", START, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--xla_gpu_enable_pipelined_all_gather=true" in (tmp_path / "run.json").read_text("utf-8")
    environment["XLA_FLAGS"] += " --xla_gpu_no_such_flag=true"
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode != 0, "flags that are not known would not be noticed"
    assert "Unknown flag" in done.stderr


COMPILE = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from hllm_jax.parallel.overlap import set_flags
from hllm_jax.parallel.planning.topology import devices_of, parse_topology

set_flags("tpu", os.environ)
mesh = Mesh(np.array(devices_of(parse_topology("v5e:2x4"))), ("fsdp",))

def loss(w, x):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
    return (x.astype(jnp.float32) ** 2).sum()

def shape(sizes, spec):
    return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

w, x = shape((8, 2048, 2048), P(None, "fsdp")), shape((4096, 2048), P("fsdp"))
print("fused:", jax.jit(jax.grad(loss)).lower(w, x).compile().as_text().count("async_collective_fusion"))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU")
def test_the_tpu_compiler_knows_them_and_obeys_the_user() -> None:
    fused = {}
    for given in ("", "--xla_tpu_enable_async_collective_fusion=false"):
        environment = {**os.environ, "LIBTPU_INIT_ARGS": given, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", COMPILE]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        fused[given] = int(done.stdout.rpartition("fused:")[2])
    assert fused[""] > 0
    assert fused["--xla_tpu_enable_async_collective_fusion=false"] == 0
