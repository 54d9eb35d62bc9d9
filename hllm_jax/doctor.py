"""What this machine offers, which settings are in force, and what is wrong, with its remedy.

The devices are asked in a process of their own: a platform that fails, hangs or crashes while it starts is a
finding, and no device stays occupied.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm_jax.config.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGES = (
    *("hllm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record"),
    *("tensorflow-datasets", "sentencepiece", "tokenizers", "safetensors", "gguf", "numpy"),
    *("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "libtpu", "matplotlib", "tensorboardX"),
)

SETTINGS = re.compile(
    r"JAX_|XLA_|TPU_|LIBTPU|CUDA_VISIBLE|TF_GPU_ALLOCATOR|LD_LIBRARY_PATH$|HLLM_(CACHE|DEBUG)$|OMP_NUM_THREADS$"
)

# Runs in its own interpreter. The last line of its output is the answer.
PROBE = """
import json, sys, time
start = time.perf_counter()
import jax
devices = jax.local_devices()
def one(d):
    stats = d.memory_stats() or {}
    return {"id": d.id, "kind": d.device_kind, "memory_bytes": stats.get("bytes_limit")}
print(json.dumps({
    "platform": jax.default_backend(),
    "devices": [one(d) for d in devices],
    "processes": jax.process_count(),
    "start_s": round(time.perf_counter() - start, 1),
}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong, and how to mend it."""

    problem: str
    remedy: str


def examine(timeout_s: float = 120.0) -> dict[str, Any]:
    """Everything about this machine that decides how hllm_jax runs here.

    Args:
        timeout_s: how long the platform may take to start before that counts as a finding.

    Returns:
        `platform`, `devices`, `versions`, `memory`, `settings`, `machine`, and `problems`: a list of
        `{"problem", "remedy"}`, empty when all is well. Sizes are in bytes.
    """
    environment = dict(os.environ)
    jax = ask_jax(environment, timeout_s)
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    hardware = accelerators()
    machine: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerators": hardware,
        "cache": str(cache_dir()),
    }
    report: dict[str, Any] = {
        "platform": jax.get("platform"),
        "devices": jax.get("devices", []),
        "processes": jax.get("processes"),
        "start_s": jax.get("start_s"),
        "versions": versions,
        "memory": memory(environment, jax),
        "settings": {name: value for name, value in sorted(environment.items()) if SETTINGS.match(name)},
        "machine": machine,
    }
    found = findings(environment, jax, versions, hardware) + disk_findings()
    report["problems"] = [dataclasses.asdict(finding) for finding in found]
    return report


def show(report: Mapping[str, Any]) -> None:
    """Print what `examine` found for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    devices: dict[str, int] = {}
    for device in report["devices"]:
        size = f" {device['memory_bytes'] / 2**30:.0f} GiB" if device["memory_bytes"] else ""
        devices[device["kind"] + size] = devices.get(device["kind"] + size, 0) + 1
    table.add_row("platform", f"{report['platform'] or 'none starts'} (in {report['start_s']} s)")
    table.add_row("devices", ", ".join(f"{count} x {kind}" for kind, count in devices.items()) or "none")
    table.add_row("machine", f"{report['machine']['cores']} cores, {report['machine']['system']}")
    host = report["memory"]["host_bytes"]
    table.add_row("memory", f"{host / 2**30:.1f} GiB for this process" if host else "unknown")
    if report["memory"]["device_reservation"]:
        table.add_row("", f"device memory: {report['memory']['device_reservation']}")
    table.add_row("python", report["machine"]["python"])
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    table.add_row(
        "settings", ", ".join(f"{name}={value}" for name, value in report["settings"].items()) or "none"
    )
    table.add_row("cache", report["machine"]["cache"])
    console.print(table)
    for finding in report["problems"]:
        console.print(f"\n[red]wrong:[/red] {escape(finding['problem'])}")
        console.print(f"[green]mend:[/green]  {escape(finding['remedy'])}")
    if not report["problems"]:
        console.print("\n[green]nothing is wrong[/green]")


def ask_jax(environment: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """What jax says of its devices: `platform, devices, …`, or `error` with the last line it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=dict(environment),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:g} s", "hangs": True}
    if done.returncode == 0 and done.stdout.strip():
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        answer["warnings"] = [line for line in done.stderr.splitlines() if "falling back" in line.lower()]
        return answer
    lines = [
        line
        for line in done.stderr.strip().splitlines()
        if line.strip() and not line.startswith("For simplicity")
    ]
    errors = [line for line in lines if re.match(r"\w*(\.\w+)*(Error|Exception)\b", line)]
    return {"error": (errors or lines or [f"exit status {done.returncode}"])[-1]}


def accelerators() -> dict[str, Any]:
    """Accelerators that the system shows, whether or not jax can use them, and who holds them."""
    gpus = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
    tpus = sorted(str(path) for path in [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")])
    return {"gpu": gpus, "tpu": tpus, "holders": holders(tpus)}


def holders(devices: list[str]) -> list[int]:
    """Ids of other processes that have one of the device files open (those we are allowed to see)."""
    found = set[int]()
    for link in Path("/proc").glob("[0-9]*/fd/*") if devices else ():
        try:
            if os.readlink(link) in devices:
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return sorted(found - {os.getpid()})


def memory(environment: Mapping[str, str], jax: Mapping[str, Any]) -> dict[str, Any]:
    """Host memory, and how jax reserves device memory."""
    reserve: str | None = None
    if jax.get("platform") in ("gpu", "cuda", "rocm"):
        if environment.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() in ("false", "0"):
            reserve = "as needed"
        else:
            share = environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
            names = "XLA_PYTHON_CLIENT_PREALLOCATE, XLA_PYTHON_CLIENT_MEM_FRACTION"
            reserve = f"{share} of each GPU at start ({names})"
    return {"host_bytes": host_memory(), "device_reservation": reserve}


def host_memory() -> int | None:
    """Bytes this process may use: the machine's, or the container's limit where that is lower."""
    sizes: list[int] = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(sizes, default=None)


def findings(
    environment: Mapping[str, str],
    jax: Mapping[str, Any],
    versions: Mapping[str, str],
    hardware: Mapping[str, Any],
) -> list[Finding]:
    """What is wrong with devices, versions and settings; pure, so that machines nobody has can be tested."""
    found: list[Finding] = []

    def note(problem: str, remedy: str) -> None:
        found.append(Finding(problem=problem, remedy=remedy))

    wanted = environment.get("JAX_PLATFORMS", "")
    if "error" in jax:
        remedy = "set HLLM_DEBUG=1 and run `python -c 'import jax; jax.devices()'` to see all of it"
        if hardware["holders"]:
            remedy = f"the accelerator is held by process {_join(hardware['holders'])}: end it, or wait"
        elif wanted:
            remedy = (
                f"JAX_PLATFORMS={wanted} asks for it: install that platform ({_install(wanted)}), or unset it"
            )
        elif jax.get("hangs"):
            remedy = "another process may hold the accelerator, or other hosts of the slice have not started"
        note(f"jax starts no platform: {jax['error']}", remedy)
    on_cpu = jax.get("platform") == "cpu"
    if on_cpu and "cpu" not in wanted:
        if hardware["gpu"]:
            note(f"there are {len(hardware['gpu'])} GPUs, and jax runs on the CPU", _install("cuda"))
        if hardware["tpu"] and hardware["holders"]:
            held = f"process {_join(hardware['holders'])}"
            note(f"there is a TPU, held by {held}, and jax runs on the CPU", f"end {held}, or wait")
        elif hardware["tpu"]:
            note("there is a TPU, and jax runs on the CPU", _install("tpu"))
    if "jax" in versions and versions["jax"] != versions.get("jaxlib"):
        pair = f"jax {versions['jax']} with jaxlib {versions.get('jaxlib', 'missing')}"
        note(
            f"{pair}: the two belong to one release",
            f"pip install jax=={versions['jax']} jaxlib=={versions['jax']}",
        )
    for plugin in ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin"):
        if plugin in versions and versions[plugin] != versions.get("jaxlib"):
            pair = f"{plugin} {versions[plugin]} with jaxlib {versions.get('jaxlib')}"
            note(f"{pair}: they must be of one release", _install("cuda"))
    if environment.get("LD_LIBRARY_PATH") and any("cuda" in name for name in versions):
        note(
            "LD_LIBRARY_PATH is set: it can replace the CUDA libraries that pip installed",
            "unset LD_LIBRARY_PATH",
        )
    found += _setting_findings(environment, jax)
    return found


def _setting_findings(environment: Mapping[str, str], jax: Mapping[str, Any]) -> list[Finding]:
    """Settings that make a run wrong or slow."""
    found: list[Finding] = []
    on = ("1", "true", "yes", "on")
    for name, effect in (
        ("JAX_ENABLE_X64", "64-bit numbers: twice the memory, and other results"),
        ("JAX_DISABLE_JIT", "nothing is compiled: hundreds of times slower"),
        ("JAX_DEBUG_NANS", "each step waits for the device, and donation is off"),
    ):
        if environment.get(name, "").lower() in on:
            found.append(Finding(problem=f"{name} is set: {effect}", remedy=f"unset {name}"))
    share = environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    if share is not None and not re.fullmatch(r"0?\.\d+|1(\.0*)?", share):
        found.append(
            Finding(
                problem=f"XLA_PYTHON_CLIENT_MEM_FRACTION={share} is no share of the GPU's memory",
                remedy="give a number above 0 and at most 1, for example 0.9",
            )
        )
    pretended = re.search(r"xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", ""))
    if pretended and int(pretended[1]) > 1 and jax.get("platform") == "cpu":
        found.append(
            Finding(
                problem=f"XLA_FLAGS pretends {pretended[1]} CPU devices: fine for tests, slow for training",
                remedy="unset XLA_FLAGS",
            )
        )
    if sys.getfilesystemencoding().lower() != "utf-8" or (sys.stdout.encoding or "utf-8").lower() != "utf-8":
        found.append(
            Finding(
                problem="the terminal's encoding is not UTF-8: Chinese text cannot be shown",
                remedy="export LANG=C.UTF-8",
            )
        )
    return found


def disk_findings() -> list[Finding]:
    """What is wrong with the cache folder and the current folder."""
    found: list[Finding] = []
    for folder, change in (
        (cache_dir(), "set HLLM_CACHE to another folder"),
        (Path(), "change to another folder"),
    ):
        there = next((each for each in [folder, *folder.resolve().parents] if each.exists()), Path("/"))
        if not os.access(there, os.W_OK):
            found.append(Finding(problem=f"{folder.resolve()} cannot be written", remedy=change))
        elif (free := shutil.disk_usage(there).free) < 2 << 30:
            problem = f"{folder.resolve()} has {free >> 20} MiB left; data and checkpoints need more"
            found.append(Finding(problem=problem, remedy=f"free some space, or {change}"))
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(wanted: str) -> str:
    extra = "tpu" if "tpu" in wanted else "cuda12" if re.search("cuda|gpu", wanted) else ""
    return (
        f"make setup EXTRAS={extra}, or pip install 'hllm-jax[{extra}]'"
        if extra
        else f"install jax for {wanted}"
    )


def _join(ids: list[int]) -> str:
    return ", ".join(str(each) for each in ids)
