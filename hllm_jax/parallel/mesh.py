"""The device mesh."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from hllm_jax.parallel.config import AXES, MeshConfig, Strategy

#: The axis that takes all devices where a config names none.
HOME = {"ddp": "data", "zero1": "fsdp", "zero2": "fsdp", "zero3": "fsdp", "hsdp": "fsdp", "tensor": "tensor"}


class MeshError(ValueError):
    """A mesh that the devices cannot form."""


def mesh_shape(config: MeshConfig, strategy: Strategy, devices: int) -> dict[str, int]:
    """Sizes of all axes of `AXES` for so many devices.

    Raises:
        MeshError: the product is not the number of devices.
    """
    sizes = config.sizes() or {HOME[strategy]: -1}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shape = dict.fromkeys(AXES, 1) | sizes
    fill = next((axis for axis, size in sizes.items() if size == -1), None)
    if fill is not None and devices % fixed == 0:
        shape[fill] = devices // fixed
    if math.prod(shape.values()) != devices:
        given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        best = max(d for d in range(1, devices + 1) if devices % d == 0 and d <= fixed)
        raise MeshError(
            f"mesh {{{given}}} needs {'a multiple of ' if fill else ''}{fixed} devices, there are {devices}. "
            f"Sizes must multiply to {devices} (the nearest product that divides it is {best}); "
            f"one axis may be -1 to take what is left."
        )
    return shape


def make_mesh(
    config: MeshConfig | None = None,
    strategy: Strategy = "ddp",
    devices: Sequence[jax.Device] | None = None,
    slices: int = 1,
) -> jax.sharding.Mesh:
    """A mesh with all six axes (most of size 1), of Auto type: the compiler places the collectives.

    Args:
        config: axis sizes; None for all devices on the strategy's own axis.
        strategy: names that axis.
        devices: default `jax.devices()`.
        slices: groups of devices that a slow network connects, in the order of `devices`: the outermost axes
            of the mesh have to run over whole groups.

    Raises:
        MeshError: the sizes do not multiply to the number of devices, or no axis runs over the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config or MeshConfig(), strategy, len(devices))
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    if slices > 1:
        _check_slices(shape, slices)
        # In the order of the slices: `make_mesh` would look for a ring inside of one.
        laid = np.array(devices).reshape([shape[axis] for axis in AXES])
        return jax.sharding.Mesh(laid, AXES, axis_types=kinds)
    # An axis may take a part of one of the torus's: two ways of tensor parallelism on a torus of 4 x 4 x 8.
    sizes = [shape[axis] for axis in AXES]
    laid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(laid, AXES, axis_types=kinds)


def _check_slices(shape: dict[str, int], slices: int) -> None:
    """Refuse a mesh whose inner axes would cross from one slice to the next."""
    over = 1
    for axis in AXES:
        over *= shape[axis]
        if over % slices == 0:
            if axis not in ("stage", "data", "fsdp"):
                break
            return
        if slices % over:
            break
    raise MeshError(
        f"{slices} slices are connected by a slow network: an outer axis (stage, data or fsdp) has to divide "
        f"into {slices} parts, this mesh is {shape}; mesh.data={slices} would"
    )
