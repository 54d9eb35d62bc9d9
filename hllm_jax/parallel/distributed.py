"""Several processes as one run: start-up, barriers that say who is missing, and what all must agree on.

Everything here goes through JAX's coordination service, which process 0 serves; no device is used. With one
process every function returns at once.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import json
import os
import signal
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

#: How often each name was used. All processes pass the same places in the same order, so they count alike.
_times: collections.Counter[str] = collections.Counter()

#: Characters of an error that are told to other processes.
MESSAGE = 2000

#: After this share of the heartbeat the watch says who is silent. JAX beats twice in a heartbeat, so it ends
#: the others between a half and a whole one after a death: it has to be said before.
SILENCE = 0.3


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
    if process():
        # JAX ends the process at once where that one dies: nothing can be said then.
        print(f"{host(process())}: the leader task is {host(0)}", file=sys.stderr, flush=True)
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
        name: of the place; it may be passed again and again.
        seconds: so long at most.

    Raises:
        DistributedError: names the processes that did not come.
    """
    if processes() == 1:
        return
    place = _again(f"barrier/{name}")
    _client().key_value_set(f"hllm/{place}/{process()}", "here")
    try:
        _client().wait_at_barrier(f"hllm/{place}", int(1000 * seconds))
    except Exception as error:
        lost = missing(place)
        who = ", ".join(map(host, lost)) or " ".join(str(error).split())[:300]
        raise DistributedError(
            f"{host(process())} waited {seconds:g} s at {name!r} for {who}: look at its log, and whether its "
            "machine is there"
        ) from error
    # All are past it: nobody asks who came.
    _client().key_value_delete(f"hllm/{place}/{process()}")


def missing(place: str) -> list[int]:
    """The processes that did not come to a barrier."""
    try:
        here = {int(key.rpartition("/")[2]) for key, _ in _client().key_value_dir_get(f"hllm/{place}/")}
    except Exception:
        return []
    return [index for index in range(processes()) if index not in here]


@contextlib.contextmanager
def coordinator_first(name: str, seconds: float = PREPARATION_SECONDS) -> Iterator[None]:
    """The others enter when process 0 has left: they find what it prepared, where they share its disk.

    Raises:
        DistributedError: process 0 did not come to the end, or ended with an error.
    """
    if processes() == 1:
        yield
        return
    if process() != 0:
        if (failed := _first_error(name, None, seconds)) is not None:
            raise DistributedError(f"{host(0)} ended with an error: {failed[1]}")
        yield
        return
    problem: BaseException | None = None
    try:
        yield
    except BaseException as error:
        problem = error
        raise
    finally:
        _first_error(name, problem, seconds)


def share_error(name: str, error: Exception | None, seconds: float = PREPARATION_SECONDS) -> str | None:
    """Tell all processes whether this one failed, so that they can stop together.

    Args:
        name: of what was tried; every process comes here after each try.
        error: what went wrong in this process.
        seconds: so long the slowest process may take to come here; long, for what is tried has a time-out.

    Returns:
        What went wrong in the first process that failed, None where none did.

    Raises:
        DistributedError: not all came.
    """
    if processes() == 1:
        return None if error is None else str(error)
    failed = _first_error(name, error, seconds)
    return None if failed is None else f"{host(failed[0])}: {failed[1]}"


def agree(name: str, values: Mapping[str, Any], seconds: float) -> None:
    """Refuse to go on where processes differ.

    Args:
        name: of what is compared; it may be compared again and again.
        values: dotted name -> what JSON can hold.
        seconds: so long the slowest process may take to come here.

    Raises:
        DistributedError: in every process alike, names those that differ from process 0, and in what.
    """
    if processes() == 1:
        return
    place = f"hllm/{_again(f'agree/{name}')}"
    _client().key_value_set(f"{place}/{process()}", json.dumps(values, sort_keys=True, default=str))
    barrier(f"agree on {name}", seconds)
    said = [
        json.loads(_client().blocking_key_value_get(f"{place}/{index}", int(1000 * seconds)))
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


def ask_to_stop(status: int) -> None:
    """Let all processes stop after the same update, as SIGTERM does, and end with this status."""
    _client().key_value_set("hllm/stop/status", str(status), allow_overwrite=True)
    os.kill(os.getpid(), signal.SIGTERM)


def stop_status() -> int:
    """The status that a process asked for where it asked all to stop; 0 for SIGTERM or a notice."""
    if processes() > 1:
        for _, status in _client().key_value_dir_get("hllm/stop/"):
            return int(status)
    return 0


class Watch(threading.Thread):
    """Says which process is gone before JAX, which only knows its number, ends this one.

    Every process counts up in the coordination service. One whose count stands still is dead, or so busy that
    its Python stands still; JAX, which beats below Python, hears nothing of the dead alone.

    Args:
        heartbeat: seconds of silence after which JAX ends the others; the watch speaks earlier.
    """

    end_of_this = "JAX ends this process; start all again, and the run goes on from its newest checkpoint"

    def __init__(self, heartbeat: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.heartbeat = heartbeat
        self.ending = False
        self.over = threading.Event()
        self.names = [host(index) for index in range(processes())]
        self.moved = dict.fromkeys(range(len(self.names)), (-1, time.monotonic()))
        self.silent: list[int] = []

    def run(self) -> None:
        """Until the coordinator is gone, or this process ends."""
        count = 0
        while not self.over.is_set():
            count += 1
            client = _client()
            try:
                client.key_value_set(f"hllm/beat/{process()}", str(count), allow_overwrite=True)
                found = {int(k.rpartition("/")[2]): int(v) for k, v in client.key_value_dir_get("hllm/beat/")}
            except Exception:
                if not self.ending:
                    self.say(
                        f"{self.names[0]}, the coordinator, cannot be reached any more. {self.end_of_this}"
                    )
                return
            self.look(found, time.monotonic())
            self.over.wait(self.heartbeat / 16)

    def look(self, found: Mapping[int, int], now: float) -> None:
        """Compare the counts of all with those of before, and say who has become silent or is back."""
        self.moved = {
            i: (found.get(i, -1), now) if found.get(i, -1) != last else (last, then)
            for i, (last, then) in self.moved.items()
        }
        before, limit = self.silent, SILENCE * self.heartbeat
        self.silent = [i for i, (_, then) in self.moved.items() if now - then > limit]
        for i in self.silent:
            if i not in before:
                gone = f"{self.names[i]} gone: silent for {limit:.0f} s"
                self.say(f"{gone}. By {self.heartbeat:g} s {self.end_of_this}")
        for i in before:
            if i not in self.silent:
                self.say(f"{self.names[i]} is back: it was only busy")

    def end(self) -> None:
        """Wait for the others to come to their end, watching them, as JAX does after this.

        From here on the coordinator may leave. Then the thread is waited for: one that Python's end meets
        inside JAX's client takes the process down.
        """
        self.ending = True
        try:
            jax.distributed.shutdown()
        finally:
            self.over.set()
            self.join(self.heartbeat)

    def say(self, what: str) -> None:
        """To standard error, at once."""
        print(what, file=sys.stderr, flush=True)


def _first_error(name: str, error: BaseException | None, seconds: float) -> tuple[int, str] | None:
    """Meet the others with what went wrong here: the first process that failed, and its words."""
    place = f"hllm/{_again(f'error/{name}')}"
    try:
        if error is not None:
            said = (str(error) or repr(error)).encode("utf-8", "backslashreplace").decode()
            _client().key_value_set(f"{place}/{process()}", said[:MESSAGE])
    finally:
        barrier(name, seconds)
    found = [(int(key.rpartition("/")[2]), text) for key, text in _client().key_value_dir_get(f"{place}/")]
    return min(found, default=None)


def _again(name: str) -> str:
    """The name with how often it was used: no key of JAX's service can be set twice, no barrier passed."""
    _times[name] += 1
    return f"{name}/{_times[name]}"


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
