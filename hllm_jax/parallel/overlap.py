"""Flags that let devices send while they compute, appended to the user's before a backend starts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import MutableMapping, Sequence
from pathlib import Path

#: platform -> the variable that its compiler reads, and flags for it.
#: TPU: asynchronous collectives fused with the products they overlap with, and data-parallel all-reduces
#: (MaxText, `benchmarks/xla_flags_library.py`: all-gather and data-parallel overlap).
#: GPU: the scheduler that hides latencies (JAX, "GPU performance tips"), and collectives of a loop that are
#: begun an iteration early (NVIDIA, "Tips for High-Performance LLMs with JAX and XLA").
FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tpu": (
        "LIBTPU_INIT_ARGS",
        (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_enable_async_all_gather=true",
            "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
            "--xla_tpu_data_parallel_opt_different_sized_ops=true",
        ),
    ),
    "gpu": (
        "XLA_FLAGS",
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_enable_pipelined_all_gather=true",
            "--xla_gpu_enable_pipelined_reduce_scatter=true",
            "--xla_gpu_enable_pipelined_all_reduce=true",
        ),
    ),
}


def appended(given: str, flags: Sequence[str]) -> str:
    """Flags after those that are given; whatever is given already, with whatever value, stays as it is."""
    names = {_name(word) for word in given.split()}
    return " ".join([*given.split(), *(flag for flag in flags if _name(flag) not in names)])


def set_flags(platform: str, environment: MutableMapping[str, str]) -> list[str]:
    """Append the flags of a platform to its variable; there are none for CPUs.

    Call it before JAX starts a backend: the compilers read their flags once.

    Returns:
        What was appended.

    Raises:
        ValueError: the variable names a file of flags.
    """
    if platform not in FLAGS:
        return []
    variable, flags = FLAGS[platform]
    given = environment.get(variable, "")
    if given.strip() and not given.strip().startswith("-"):
        raise ValueError(
            f"run.overlap=true appends flags to {variable}, which names a file here ({given}): put them "
            f"there, {' '.join(flags)}, and set run.overlap=false"
        )
    environment[variable] = appended(given, flags)
    return environment[variable].split()[len(given.split()) :]


def expected_platform(wanted: str) -> str:
    """The platform that JAX will start on, guessed without starting it: `cpu`, `gpu` or `tpu`.

    Args:
        wanted: `run.platform`.
    """
    forced = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if wanted != "auto" or forced:
        named = wanted if wanted != "auto" else forced
        return {"cuda": "gpu", "rocm": "gpu"}.get(named, named)
    there = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    if there and importlib.util.find_spec("libtpu") is not None:
        return "tpu"
    return "gpu" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"


def _name(flag: str) -> str:
    """`--noflag`, `--flag` and `--flag=value` set the same flag."""
    return flag.lstrip("-").partition("=")[0].removeprefix("no")
