"""Barriers, agreement and the watch, on JAX's coordination service: two threads stand for two processes."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jax._src.lib import _jax

from hllm_jax.parallel import distributed
from hllm_jax.parallel.distributed import (
    DistributedError,
    Watch,
    agree,
    barrier,
    coordinator_first,
    share_error,
)

Both = Callable[[Callable[[int], Any]], list[Any]]


class Times:
    """How often a name was used by the process of this thread."""

    def __init__(self, this: threading.local) -> None:
        self.this = this
        self.counts: Counter[tuple[int, str]] = Counter()

    def __getitem__(self, name: str) -> int:
        return self.counts[self.this.index, name]

    def __setitem__(self, name: str, count: int) -> None:
        self.counts[self.this.index, name] = count


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    """Runs a function of the process index in two threads, each of which is a process to `distributed`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    service = _jax.get_distributed_runtime_service(f"localhost:{port}", 2, heartbeat_timeout=60)
    clients = [
        _jax.get_distributed_runtime_client(f"localhost:{port}", i, init_timeout=10, shutdown_timeout=10)
        for i in range(2)
    ]
    this = threading.local()
    monkeypatch.setattr(distributed, "_client", lambda: clients[this.index])
    monkeypatch.setattr(distributed, "process", lambda: this.index)
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "_times", Times(this))
    with ThreadPoolExecutor(2) as threads:

        def run(act: Callable[[int], Any]) -> list[Any]:
            def one(index: int) -> Any:
                this.index = index
                try:
                    return act(index)
                except DistributedError as error:
                    return error

            return list(threads.map(one, range(2)))

        run(lambda index: clients[index].connect())
        run(lambda index: clients[index].key_value_set(f"hllm/host/{index}", f"machine{index}, pid {index}"))
        yield run
        run(lambda index: clients[index].shutdown())
    service.shutdown()


def test_who_does_not_come_to_a_barrier_is_named(both: Both) -> None:
    said = both(lambda index: barrier("data", 0.3) if index == 0 else time.sleep(0.6))
    assert "process 0 (machine0, pid 0) waited 0.3 s at 'data' for process 1 (machine1, pid 1)" in str(
        said[0]
    )


def test_names_can_be_used_again(both: Both) -> None:
    order = []

    def twice(index: int) -> None:
        for n in range(2):
            with coordinator_first("data", 10):
                time.sleep(0.05 * (1 - index))
                order.append((n, index))
            agree("start", {"round": n}, 10)

    assert both(twice) == [None, None]
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_what_stops_the_coordinator_stops_all(both: Both) -> None:
    def prepare(index: int) -> None:
        with coordinator_first("data", 10):
            assert index == 0, "nothing was prepared"
            raise DistributedError("the disk is full")

    said = both(prepare)
    assert str(said[0]) == "the disk is full"
    assert str(said[1]) == "process 0 (machine0, pid 0) ended with an error: the disk is full"


def test_another_hash_is_named_in_both(both: Both) -> None:
    said = both(lambda index: agree("data", {"fingerprint": "abc"[index:], "tokenizer": "t"}, 10))
    for error in said:
        assert isinstance(error, DistributedError)
        assert "do not agree on the data of this run" in str(error)
        assert "process 1 (machine1, pid 1): fingerprint = 'bc', process 0 has 'abc'" in str(error)
        assert "tokenizer" not in str(error)
    # Whoever has put it right goes on in the same processes.
    assert both(lambda index: agree("data", {"fingerprint": "abc"}, 10)) == [None, None]


def test_who_is_silent_is_named_once_and_may_come_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    watch = Watch(heartbeat=10)
    begin = time.monotonic()
    said = []
    for seconds, counts in [(0, {0: 1, 1: 1}), (2.5, {0: 2, 1: 1}), (3.5, {0: 3, 1: 1}), (4, {0: 4, 1: 1})]:
        watch.look(counts, begin + seconds)
        said.append(capsys.readouterr().err)
    assert said[:2] == ["", ""]
    assert said[2] == (
        "process 1 gone: silent for 3 s. By 10 s JAX ends this process; start all again, "
        "and the run goes on from its newest checkpoint\n"
    )
    assert said[3] == ""
    watch.look({0: 5, 1: 2}, begin + 4.5)
    assert capsys.readouterr().err == "process 1 is back: it was only busy\n"


def test_an_error_of_one_process_is_told_to_all(both: Both) -> None:
    assert both(lambda index: share_error("reward", None, 10)) == [None, None]
    one = both(lambda index: share_error("reward", ValueError("no more") if index else None, 10))
    assert one == ["process 1 (machine1, pid 1): no more"] * 2
    empty = both(lambda index: share_error("reward", KeyError() if index == 0 else ValueError("\ud800"), 10))
    assert empty == ["process 0 (machine0, pid 0): KeyError()"] * 2
    long = both(lambda index: share_error("reward", ValueError("x" * 9999), 10))
    assert long == ["process 0 (machine0, pid 0): " + "x" * 2000] * 2


def test_the_end_waits_for_a_watch_that_is_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = threading.Event()

    class Client:
        def key_value_set(self, *_: object, **__: object) -> None:
            asking.set()
            time.sleep(0.3)

        def key_value_dir_get(self, _: str) -> list[tuple[str, str]]:
            return []

    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "_client", Client)
    watch = Watch(heartbeat=10)
    watch.start()
    assert asking.wait(10)
    watch.end()
    # Python's end would meet the thread inside JAX's client, and abort the process.
    assert not watch.is_alive()
