"""Several processes as one run: start-up, barriers that say who is missing, and what all must agree on.

Everything here goes through JAX's coordination service, which process 0 serves; no device is used. With one
process every function returns at once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from hllm_jax.parallel.config import DistributedConfig

#: Preparing data may take a day; a coordinator that dies meanwhile is noticed by its heartbeat.
PREPARATION_SECONDS = 24 * 3600


class DistributedError(RuntimeError):
    """Processes that cannot start together, do not arrive, or do not agree."""


def start(config: DistributedConfig) -> None:
    """Join the other processes, if there are any. Call it before anything asks JAX for a device.

    Raises:
        DistributedError: the coordinator cannot be reached, or not all processes came in time.
    """
    if _client() is not None or not (config.coordinator or environment()):
        return
    who = f"process {config.process} of {config.processes}" if config.coordinator else "this process"
    remedy = (
        "Process 0 has to run there, its port open, and every process has to be started with the same "
        "distributed.coordinator and distributed.processes, and its own distributed.process"
    )
    if config.coordinator and config.process:
        _reach(config.coordinator, config.start_seconds, who, remedy)
    where = config.coordinator or f"the address that {environment()} says"
    # JAX ends the process where not all come in time, and does not say where it looked for them.
    late = threading.Timer(
        0.9 * config.start_seconds,
        lambda: print(f"{who} still waits for the others at {where}. {remedy}", file=sys.stderr, flush=True),
    )
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            initialization_timeout=config.start_seconds,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            # At the end all wait for all: one that died should not hold the others for long.
            shutdown_timeout_seconds=config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise DistributedError(
            f"{who} could not start with the coordinator at {where}: {said}. {remedy}"
        ) from error
    finally:
        late.cancel()
    _client().key_value_set(f"hllm/host/{process()}", f"{socket.gethostname()}, pid {os.getpid()}")
    barrier("start", config.start_seconds)
    watch = Watch(config.heartbeat_seconds)
    atexit.register(watch.end)
    watch.start()


def environment() -> str | None:
    """The environment that knows the processes of this run, if there is one and it has several."""
    for name, tasks in (("SLURM", "SLURM_STEP_NUM_TASKS"), ("Open MPI", "OMPI_COMM_WORLD_SIZE")):
        if int(os.environ.get(tasks) or 1) > 1:
            return name
    from jax._src.clusters import ClusterEnv

    kinds = [kind for kind in ClusterEnv._cluster_types if "tpu" in kind.name]
    return next((kind.name for kind in kinds if kind.is_env_present()), None)


def process() -> int:
    """The index of this process; does not start a backend."""
    from jax._src.distributed import global_state

    return int(global_state.process_id or 0)


def processes() -> int:
    """How many there are; does not start a backend."""
    from jax._src.distributed import global_state

    return int(global_state.num_processes or 1) if global_state.client is not None else 1


def host(index: int) -> str:
    """`process I (HOST, pid P)`, for messages."""
    try:
        return f"process {index} ({_client().key_value_try_get(f'hllm/host/{index}')})"
    except Exception:
        return f"process {index}"


def barrier(name: str, seconds: float) -> None:
    """Wait until every process is here.

    Args:
        name: of the place; each may be passed once.
        seconds: so long at most.

    Raises:
        DistributedError: names the processes that did not come.
    """
    if processes() == 1:
        return
    _client().key_value_set(f"hllm/at/{name}/{process()}", "here")
    try:
        _client().wait_at_barrier(f"hllm/{name}", int(1000 * seconds))
    except Exception as error:
        lost = missing(name)
        who = ", ".join(map(host, lost)) or " ".join(str(error).split())[:300]
        raise DistributedError(
            f"{host(process())} waited {seconds:g} s at {name!r} for {who}: look at its log, and whether its "
            "machine is there"
        ) from error


def missing(name: str) -> list[int]:
    """The processes that did not come to a barrier."""
    try:
        here = {int(key.rpartition("/")[2]) for key, _ in _client().key_value_dir_get(f"hllm/at/{name}/")}
    except Exception:
        return []
    return [index for index in range(processes()) if index not in here]


@contextlib.contextmanager
def coordinator_first(name: str, seconds: float = PREPARATION_SECONDS) -> Iterator[None]:
    """The others enter when process 0 has left: they find what it prepared, where they share its disk.

    Raises:
        DistributedError: process 0 did not come to the end.
    """
    if process() != 0:
        barrier(name, seconds)
    yield
    if process() == 0:
        barrier(name, seconds)


def agree(name: str, values: Mapping[str, Any], seconds: float) -> None:
    """Refuse to go on where processes differ.

    Args:
        name: of what is compared; each may be compared once.
        values: dotted name -> what JSON can hold.
        seconds: so long the slowest process may take to come here.

    Raises:
        DistributedError: in every process alike, names those that differ from process 0, and in what.
    """
    if processes() == 1:
        return
    _client().key_value_set(f"hllm/agree/{name}/{process()}", json.dumps(values, sort_keys=True, default=str))
    barrier(f"agree/{name}", seconds)
    said = [
        json.loads(_client().blocking_key_value_get(f"hllm/agree/{name}/{index}", int(1000 * seconds)))
        for index in range(processes())
    ]
    lines = [
        f"  {host(index)}: {key} = {other.get(key)!r}, process 0 has {said[0].get(key)!r}"
        for index, other in enumerate(said)
        for key in sorted(said[0].keys() | other.keys())
        if other.get(key) != said[0].get(key)
    ]
    if lines:
        raise DistributedError(
            f"the processes do not agree on the {name} of this run:\n" + "\n".join(lines[:20]) + "\n"
            "Start all of them with the same code, config and data"
        )


def stop_at(step: int) -> bool:
    """Whether all processes stop after this update, because one got SIGTERM or a maintenance notice.

    Call it once an update in every process. The service chooses an update that none has passed, so it costs
    no communication until there is a reason.
    """
    from jax.experimental import multihost_utils

    return processes() > 1 and multihost_utils.reached_preemption_sync_point(step)


class Watch(threading.Thread):
    """Says which process is gone before JAX, which only knows its number, ends this one.

    Every process counts up in the coordination service; one whose count stands still does not live any more.

    Args:
        heartbeat: seconds of silence after which JAX ends the others; the watch speaks a little earlier.
    """

    def __init__(self, heartbeat: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.heartbeat = heartbeat
        self.ending = False
        self.names = [host(index) for index in range(processes())]

    def run(self) -> None:
        """Until somebody is gone, or this process ends."""
        moved = dict.fromkeys(range(len(self.names)), (-1, time.monotonic()))
        count = 0
        while True:
            count += 1
            client = _client()
            try:
                client.key_value_set(f"hllm/beat/{process()}", str(count), allow_overwrite=True)
                found = {int(k.rpartition("/")[2]): int(v) for k, v in client.key_value_dir_get("hllm/beat/")}
            except Exception:
                if not self.ending:
                    self.say(f"{self.names[0]}, the coordinator, cannot be reached any more")
                return
            now = time.monotonic()
            moved = {
                i: (found.get(i, -1), now) if found.get(i, -1) != last else (last, then)
                for i, (last, then) in moved.items()
            }
            silent = [i for i, (_, then) in moved.items() if now - then > 0.6 * self.heartbeat]
            if silent:
                gone = " and ".join(self.names[i] for i in silent)
                self.say(f"{gone} gone: silent for {0.6 * self.heartbeat:.0f} s")
                return
            time.sleep(self.heartbeat / 8)

    def end(self) -> None:
        """From here on the coordinator may leave."""
        self.ending = True

    def say(self, what: str) -> None:
        """To standard error, at once."""
        print(
            f"{what}. This process ends; start all again, and the run goes on from its newest checkpoint",
            file=sys.stderr,
            flush=True,
        )


def _reach(address: str, seconds: float, who: str, remedy: str) -> None:
    """Wait until something listens at HOST:PORT."""
    name, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((name.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise DistributedError(
                    f"{who}: nothing answers at {address} for {seconds:g} s ({error}). {remedy}"
                ) from None
            time.sleep(0.5)


def _client() -> Any:
    """The client of JAX's coordination service, None before `start`. The one place that reaches for it."""
    from jax._src.distributed import global_state

    return global_state.client
