"""Chips that are not here: their numbers, and devices that the compiler can compile for."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

GiB = 1024**3


class TopologyError(ValueError):
    """A topology that is not known, or that cannot be compiled for here."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip as its maker describes it.

    TPU: the tables of "How to Scale Your Model" (Austin et al. 2025, chapter 2) and of the Cloud TPU
    documentation. GPU: NVIDIA's data sheet of the H100 SXM.

    Attributes:
        platform: `tpu` or `gpu`.
        flops: bfloat16 operations a second (dense).
        memory: bytes of HBM.
        bandwidth: of the HBM, bytes a second.
        link: bytes a second and direction of one link between neighbours (TPU), or into the switch (GPU).
        dimensions: of the torus; 1 for a switch.
        outside: bytes a second and chip between slices (TPU) or hosts (GPU).
        host: chips of a host.
        largest: of the sizes that the compiler offers.
    """

    platform: str
    flops: float
    memory: int
    bandwidth: float
    link: float
    dimensions: int
    outside: float
    host: int
    largest: tuple[int, ...]


CHIPS: dict[str, Chip] = {
    "v4": Chip("tpu", 275e12, 32 * GiB, 1.2e12, 4.5e10, 3, 6.25e9, 4, (16, 16, 16)),
    "v5e": Chip("tpu", 197e12, 16 * GiB, 8.1e11, 4.5e10, 2, 3.125e9, 8, (16, 16)),
    "v5p": Chip("tpu", 459e12, 95 * GiB, 2.8e12, 9e10, 3, 6.25e9, 4, (16, 16, 24)),
    "v6e": Chip("tpu", 918e12, 32 * GiB, 1.6e12, 9e10, 2, 12.5e9, 8, (16, 16)),
    "h100": Chip("gpu", 989e12, 80 * GiB, 3.35e12, 4.5e11, 1, 5e10, 8, (8, 128)),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are connected.

    Attributes:
        name: as it was asked for, `v5p:4x4x4` or `h100:16x8` (hosts x chips of each).
        kind: key of `CHIPS`.
        shape: of a slice.
        slices: so many of them, connected by the network of the data centre.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The numbers of its chips."""
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        """How many chips there are."""
        return math.prod(self.shape) * self.slices


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The topology of a name.

    Raises:
        TopologyError: the name is no `CHIP:AxB[xC]`; lists those that there are.
    """
    known = (
        f"there are {', '.join(f'{kind}:{_example(chip)}' for kind, chip in CHIPS.items())}; sizes are chips "
        "along each axis of the torus (for GPUs hosts x GPUs of each, or GPUs of one host)"
    )
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name.strip().lower())
    if match is None or match[1] not in CHIPS:
        raise TopologyError(f"unknown topology {name!r}: {known}")
    chip, shape = CHIPS[match[1]], tuple(int(size) for size in match[2].split("x"))
    if chip.platform == "gpu" and len(shape) == 1:
        shape = (1, *shape)
    wanted = 2 if chip.platform == "gpu" else chip.dimensions
    too_large = any(size > most for size, most in zip(sorted(shape), sorted(chip.largest), strict=False))
    if len(shape) != wanted or 0 in shape or too_large or (chip.platform == "gpu" and shape[1] > 8):
        raise TopologyError(
            f"{name!r} is no topology of {match[1]}: {wanted} sizes, at most {_by(chip.largest)}; {known}"
        )
    if slices < 1:
        raise TopologyError(f"--slices {slices}: at least 1")
    return Topology(name, match[1], shape, slices)


def _example(chip: Chip) -> str:
    return {3: "4x4x4", 2: "4x4", 1: "16x8"}[chip.dimensions]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def devices_of(topology: Topology) -> list[Any]:
    """Devices that programs can be compiled for, and that nothing can run on; slice after slice.

    Raises:
        TopologyError: the compiler's package is missing, or does not offer this shape.
    """
    if topology.chip.platform == "gpu":
        return _gpu_devices(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            "compiling for TPUs needs the package libtpu, which is not installed: make setup EXTRAS=plan"
        )
    # libtpu would look for the machine that it runs on, and for a lock that another process may hold.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    name = f"{topology.kind}:{_by(topology.shape)}"
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        raise TopologyError(f"the TPU compiler does not offer {name}: {_first_line(error)}") from error
    devices = list(described.devices)
    return sorted(devices, key=lambda device: (getattr(device, "slice_index", 0) or 0, device.id))


def _gpu_devices(topology: Topology) -> list[Any]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise TopologyError(
            "compiling for GPUs needs the packages jax-cuda12-plugin and jax-cuda12-pjrt, which are not "
            "installed: make setup EXTRAS=cuda12. Without them only TPUs can be planned"
        )
    from jax.experimental import topologies

    hosts, each = topology.shape
    try:
        described = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", topology=f"{hosts}x{each}x1", target_config=H100
        )
    except Exception as error:
        raise TopologyError(
            f"the CUDA plug-in does not compile ahead of time here: {_first_line(error)}"
        ) from error
    return list(described.devices)


#: What XLA's GPU compiler has to know of the chip (openxla/xla, xla/backends/gpu/target_config/specs).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
