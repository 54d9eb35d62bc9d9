"""The `mesh` and `strategy` sections."""

from __future__ import annotations

from typing import Literal, TypeAlias

from hllm_jax.config import Invalid, config

#: Mesh axes, outermost (slowest network) first.
AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")

#: How a model is spread: `ddp` replicates it; `zero1` shards the optimizer state, `zero2` the gradients too,
#: `zero3` (= fully sharded data parallel) the parameters too, over data x fsdp; `hsdp` is `zero3` over fsdp
#: only, replicated over data; `tensor` splits heads, mlp and vocabulary. Where `mesh.tensor` is above 1,
#: every strategy splits those as well.
Strategy: TypeAlias = Literal["ddp", "zero1", "zero2", "zero3", "hsdp", "tensor"]


@config
class MeshConfig:
    """Sizes of the mesh axes; at most one is -1 and takes the devices that are left.

    With every axis unset, all devices go on the axis of the strategy.
    """

    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None
    context: int | None = None
    expert: int | None = None
    stage: int | None = None

    def __post_init__(self) -> None:
        sizes = self.sizes()
        Invalid.check(
            [
                (size == 0 or size < -1, axis, f"{size}: a size is 1 or more, or -1 to fill")
                for axis, size in sizes.items()
            ]
            + [(list(sizes.values()).count(-1) > 1, "data", f"only one axis may be -1, here: {sizes}")]
        )

    def sizes(self) -> dict[str, int]:
        """The axes that were given."""
        given = {axis: getattr(self, axis) for axis in AXES}
        return {axis: size for axis, size in given.items() if size is not None}
