"""`hllm doctor`: what it finds on machines that nobody has here, and a platform that fails to start."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hllm_jax import doctor

GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2"}
CPU = {"platform": "cpu", "devices": [{"id": 0, "kind": "cpu", "memory_bytes": None}]}
BARE: dict[str, Any] = {"gpu": [], "tpu": [], "holders": []}


def found(
    environment: dict[str, str] | None = None,
    jax: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    hardware: dict[str, Any] | None = None,
) -> list[str]:
    problems = doctor.findings(environment or {}, jax or CPU, versions or GOOD, hardware or BARE)
    assert all(each.problem and each.remedy for each in problems)
    return [f"{each.problem} -> {each.remedy}" for each in problems]


def test_a_plain_machine_is_well() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"hardware": BARE | {"gpu": ["/dev/nvidia0"]}},
            "1 GPUs, and jax runs on the CPU -> make setup EXTRAS=cuda12",
        ),
        (
            {"hardware": BARE | {"tpu": ["/dev/accel0"]}},
            "a TPU, and jax runs on the CPU -> make setup EXTRAS=tpu",
        ),
        ({"hardware": BARE | {"tpu": ["/dev/accel0"], "holders": [7, 8]}}, "held by process 7, 8"),
        (
            {"jax": {"error": "boom"}, "hardware": BARE | {"tpu": ["x"], "holders": [7]}},
            "held by process 7: end it",
        ),
        ({"jax": {"error": "boom"}, "environment": {"JAX_PLATFORMS": "tpu"}}, "make setup EXTRAS=tpu"),
        ({"jax": {"error": "no answer", "hangs": True}}, "another process may hold the accelerator"),
        ({"versions": {"jax": "0.10.2", "jaxlib": "0.10.1"}}, "jax 0.10.2 with jaxlib 0.10.1"),
        ({"versions": GOOD | {"jax-cuda12-plugin": "0.10.0"}}, "jax-cuda12-plugin 0.10.0 with jaxlib 0.10.2"),
        (
            {
                "versions": GOOD | {"jax-cuda12-plugin": "0.10.2"},
                "environment": {"LD_LIBRARY_PATH": "/usr/cuda"},
            },
            "unset LD_LIBRARY_PATH",
        ),
        ({"environment": {"JAX_ENABLE_X64": "1"}}, "JAX_ENABLE_X64 is set"),
        ({"environment": {"JAX_DISABLE_JIT": "true"}}, "nothing is compiled"),
        ({"environment": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "90"}}, "no share of the GPU's memory"),
        (
            {"environment": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}},
            "pretends 8 CPU devices",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(arguments: dict[str, Any], message: str) -> None:
    (problem,) = found(**arguments)
    assert message in problem


@pytest.mark.parametrize(
    "environment",
    [{"JAX_PLATFORMS": "cpu"}, {"JAX_ENABLE_X64": "0"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".9"}],
)
def test_what_is_meant_is_not_wrong(environment: dict[str, str]) -> None:
    assert (
        found(environment, hardware=BARE if "cpu" not in environment.values() else BARE | {"gpu": ["x"]})
        == []
    )


def test_the_device_reservation_is_shown_for_gpus() -> None:
    on_gpu = {"platform": "gpu"}
    assert doctor.memory({}, CPU)["device_reservation"] is None
    assert doctor.memory({}, on_gpu)["device_reservation"].startswith("0.75 of each GPU at start")
    assert doctor.memory({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, on_gpu)["device_reservation"].startswith(
        ".5 of"
    )
    assert (
        doctor.memory({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, on_gpu)["device_reservation"] == "as needed"
    )


def test_a_platform_that_does_not_start_is_a_finding() -> None:
    answer = doctor.ask_jax(os.environ | {"JAX_PLATFORMS": "nonsense"}, 100)
    assert "nonsense" in answer["error"]


def test_a_platform_that_hangs_is_a_finding() -> None:
    assert doctor.ask_jax(dict(os.environ), 0.01) == {"error": "no answer within 0.01 s", "hangs": True}


def test_this_machine_is_examined(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    report = doctor.examine()
    assert report["platform"] == "cpu"
    assert len(report["devices"]) == 8
    assert report["versions"]["jax"]
    assert report["memory"]["host_bytes"] > 1 << 28
    assert report["settings"]["JAX_DISABLE_JIT"] == "1"
    doctor.show(report)
    shown = " ".join(capsys.readouterr().out.split())
    assert "8 x cpu" in shown
    assert "JAX_DISABLE_JIT is set" in shown
