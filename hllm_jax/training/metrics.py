"""What a run measures about itself: `metrics.jsonl`, speed against the machine's peak, memory."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Dense peak FLOP/s of one device in bfloat16, by the start of JAX's `device_kind` (makers' data sheets).
PEAKS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A10": 125e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
}


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, in the order of steps.

    Args:
        path: the file; made if missing.
        after: lines of later steps than this are cut off, and a last line that was not written to its end.
        own: whether this process writes it; else it only reads what is there.
    """

    def __init__(self, path: Path, after: int = 0, own: bool = True) -> None:
        self.path = path
        lines = [line for line in read_lines(path) if line["step"] <= after]
        if own and path.exists():
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(dumps(line) + "\n" for line in lines), "utf-8")
            os.replace(partial, path)
        self.evaluated = {line["step"] for line in lines if any(key.startswith("eval/") for key in line)}
        self._file = path.open("a", encoding="utf-8") if own else None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it has `step`. Numbers that are not finite become null, as JSON has none."""
        if self._file is not None:
            self._file.write(dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file of steps; a torn last line, or what else is no JSON object, is left out."""
    found: list[dict[str, Any]] = []
    if path.exists():
        # Not `splitlines`: a text may hold U+2028, which ends no line of a file.
        for text in path.read_text("utf-8", errors="replace").split("\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
    return found


def dumps(line: Mapping[str, Any]) -> str:
    """JSON of one line, with null for a number that is not finite."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False)


@functools.cache
def peak_flops() -> float | None:
    """Peak FLOP/s of one device, from the data sheet, on a CPU measured; None for an unknown device."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return measured_peak() / len(jax.local_devices())
    kind = device.device_kind
    known = [name for name in PEAKS if kind.lower().startswith(name.lower())]
    return PEAKS[max(known, key=len)] if known else None


def measured_peak(size: int = 1536, seconds: float = 0.4) -> float:
    """FLOP/s of float32 matrix products `[size, size]` on this machine, the best of a short while."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    a = jnp.ones((size, size), jnp.float32)
    product(a, a).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def peak_memory() -> int | None:
    """Most bytes one device held so far; on a CPU, the most resident memory of the process."""
    import jax

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return peak_resident()
    stats = device.memory_stats()
    return int(stats["peak_bytes_in_use"]) if stats and "peak_bytes_in_use" in stats else None


def peak_resident() -> int | None:
    """Most memory that this process held so far, in bytes; None where the system does not say."""
    # Linux' own figure first: a process starts with the `getrusage` figure of the one that started it.
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
