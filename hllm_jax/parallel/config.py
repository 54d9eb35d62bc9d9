"""The `mesh` and `strategy` sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

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


@config
class PipelineConfig:
    """How a batch goes through the stages of a pipeline (`mesh.stage` above 1); see `pipeline.py`.

    Attributes:
        microbatches: parts of the rows that `train.accumulation` leaves, which are under way at once; None:
            as many as there are stages.
        repeats: how often a microbatch passes each stage, which holds as many runs of layers: 1 is GPipe,
            more is the circular schedule, with a smaller bubble and more sending.
    """

    microbatches: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (
                    self.microbatches is not None and self.microbatches < 1,
                    "microbatches",
                    f"{self.microbatches}: at least 1",
                ),
                (self.repeats < 1, "repeats", f"{self.repeats}: at least 1"),
            ]
        )

    def microbatches_of(self, stages: int) -> int:
        """Microbatches that are under way at once."""
        return self.microbatches or stages

    def bubble(self, stages: int) -> float:
        """The share of its time that a stage has nothing to do: (S - 1) / (R·M + S - 1).

        For R = 1 this is the bubble of GPipe (Huang et al. 2019, section 2.3: O((K - 1) / (M + K - 1))); for
        more that of the interleaved schedule, whose ratio to the time of work is (p - 1) / (v·m) (Narayanan
        et al. 2021, section 2.2).
        """
        return (stages - 1) / (self.repeats * self.microbatches_of(stages) + stages - 1)

    def facts(self, stages: int) -> dict[str, Any] | None:
        """`stages, schedule, microbatches, repeats, bubble`; None for a single stage."""
        if stages == 1:
            return None
        return {
            "stages": stages,
            "schedule": "GPipe" if self.repeats == 1 else "circular",
            "microbatches": self.microbatches_of(stages),
            "repeats": self.repeats,
            "bubble": self.bubble(stages),
        }


def pipeline_words(facts: Mapping[str, Any]) -> str:
    """`PipelineConfig.facts` in a line, for people."""
    rounds = f" of {facts['repeats']} rounds" if facts["repeats"] > 1 else ""
    return (
        f"pipeline of {facts['stages']} stages, {facts['schedule']}{rounds}, {facts['microbatches']} "
        f"microbatches: a bubble of {100 * facts['bubble']:.1f} %"
    )


@config
class DistributedConfig:
    """The processes of a run. TPU pods, SLURM and Open MPI say by themselves what is None here.

    With everything None and no such environment there is one process.

    Args:
        coordinator: HOST:PORT of process 0, where the others find it.
        processes: how many there are.
        process: which one this is, from 0.
        start_seconds: so long a process waits for the others to start.
        barrier_seconds: so long it waits for them later, where all should arrive at once.
        heartbeat_seconds: a process that was silent for so long counts as dead, and the others stop.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    start_seconds: int = 300
    barrier_seconds: int = 300
    heartbeat_seconds: int = 40

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("coordinator", "processes", "process")}
        missing = [name for name, value in given.items() if value is None]
        host, _, port = (self.coordinator or "localhost:1").rpartition(":")
        seconds = ("start_seconds", "barrier_seconds", "heartbeat_seconds")
        Invalid.check(
            [
                (
                    0 < len(missing) < 3,
                    missing[0] if missing else "process",
                    "coordinator, processes and process belong together: give all three, or none where a "
                    "TPU pod, SLURM or Open MPI says them",
                ),
                (
                    not host or not port.isdecimal() or not 0 < int(port) < 65536,
                    "coordinator",
                    f"{self.coordinator!r}: HOST:PORT is wanted, as in 10.0.0.2:8476",
                ),
                (self.processes is not None and self.processes < 1, "processes", "1 or more"),
                (
                    self.process is not None and not 0 <= self.process < (self.processes or 1),
                    "process",
                    f"{self.process}: with processes={self.processes} it is from 0 to "
                    f"{(self.processes or 1) - 1}",
                ),
            ]
            + [(getattr(self, name) < 1, name, "1 or more") for name in seconds]
        )
