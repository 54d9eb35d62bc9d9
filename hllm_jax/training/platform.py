"""Which machine a run is on, and whether it is the one that was asked for."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform as host
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from hllm_jax.parallel import overlap

PACKAGES = (
    "hllm-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tokenizers",
    "sentencepiece",
)

VARIABLES = ("JAX_PLATFORMS", "LIBTPU_INIT_ARGS", "XLA_FLAGS")

#: Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class PlatformError(RuntimeError):
    """The accelerator that the config asks for is not there."""


def require_platform(wanted: Literal["auto", "cpu", "gpu", "tpu"]) -> str:
    """Start the backend and return its name, `cpu`, `gpu` or `tpu`.

    `auto` takes what JAX finds, but not a CPU where an accelerator is plugged in and only fails to start.

    Raises:
        PlatformError: another backend came up than was wanted, with what is there and what to do.
    """
    import jax

    if not _started():
        # A program then takes its memory in the thread that calls it: `keep_memory` can only speak for that.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        if wanted == "cpu":
            jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise PlatformError(f"run.platform={wanted}: JAX could not start: {error}") from error
    if wanted != "auto" and found != wanted:
        if wanted == "cpu":
            raise PlatformError(
                f"run.platform=cpu, but JAX already started on {found}: "
                "set JAX_PLATFORMS=cpu before Python starts"
            )
        raise PlatformError(
            f"run.platform={wanted}, but JAX found only {found} ({_devices()}){_why(wanted)}. "
            f"`hllm doctor` says more; run.platform={found} runs on what is there"
        )
    if wanted == "auto" and found == "cpu" and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        plugged = [name for name, there in (("gpu", _nvidia()), ("tpu", _tpu())) if there]
        if plugged:
            raise PlatformError(
                f"this machine has a {plugged[0]}, but JAX started on the CPU{_why(plugged[0])}. "
                "run.platform=cpu says that the CPU is meant"
            )
    return found


def let_overlap(wanted: Literal["auto", "cpu", "gpu", "tpu"]) -> None:
    """Append the flags that let collectives overlap with computation, see `parallel/overlap.py`.

    Args:
        wanted: `run.platform`.

    Raises:
        PlatformError: JAX has started, and its compiler has read its flags.
        ValueError: the user's flags stand in a file.
    """
    platform = overlap.expected_platform(wanted)
    if platform in overlap.FLAGS and _started():
        raise PlatformError(
            f"run.overlap=true comes too late: JAX has started. Set {overlap.FLAGS[platform][0]} yourself "
            "before Python starts, or run.overlap=false"
        )
    overlap.set_flags(platform, os.environ)


def keep_memory() -> None:
    """On a CPU, let each step work in the memory of the step before.

    XLA asks for the memory of intermediate results anew at each call, and the C library returns such large
    pieces to the system at once: a step of the 82.6M model touched 318,000 fresh pages, a tenth of its time.
    From this call on, freed memory stays with the process. Call it when the state is made and the step is
    compiled: what is free by then goes back first. Does nothing where the C library has no such switch.
    """
    import jax

    library = ctypes.CDLL(None) if jax.default_backend() == "cpu" and os.name == "posix" else None
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        # A quarter of a gigabyte that compilation left behind.
        library.malloc_trim(0)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def is_coordinator() -> bool:
    """Whether this process writes what all share."""
    import jax

    return jax.process_index() == 0


def facts() -> dict[str, Any]:
    """Devices, versions, code and command of this process, for `run.json`."""
    import jax

    device = jax.devices()[0]
    return {
        "platform": jax.default_backend(),
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "python": sys.version.split()[0],
        "system": host.platform(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "git": git_state(Path(__file__).resolve().parent),
        "command": sys.argv,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k in VARIABLES},
    }


def fingerprint(path: Path) -> str:
    """Of a Python file, or of all below a folder: the start of a SHA-256 of their names and contents."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        found.update(f"{file.relative_to(path).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:12]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a checkout or without git."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ("git", "-C", str(folder), *args), capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _started() -> bool:
    from jax._src import xla_bridge

    return bool(xla_bridge._backends)


def _devices() -> str:
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return f"{len(kinds)} x {kinds[0]}"


def _why(wanted: str) -> str:
    forced = os.environ.get("JAX_PLATFORMS")
    if forced:
        return f"; JAX_PLATFORMS={forced} is set"
    if wanted == "gpu":
        if not _nvidia():
            return "; there is no /dev/nvidia*"
        return (
            "" if _version("jax-cuda12-plugin") else "; the CUDA plug-in is missing: make setup EXTRAS=cuda12"
        )
    if wanted == "tpu" and _version("libtpu") is None:
        return "; libtpu is missing: make setup EXTRAS=tpu"
    return ""


def _nvidia() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _tpu() -> bool:
    return any(Path("/dev").glob("accel[0-9]*"))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
