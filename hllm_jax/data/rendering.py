"""Rendering conversations on several cores.

Rendering is Python (Jinja and span bookkeeping), so threads do not help; 3.5 million conversations take
twelve minutes on one core. Workers are plain child processes that speak pickles over pipes: unlike
`multiprocessing` they never import the caller's main module, so a script needs no guard around its main.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from typing import IO, TYPE_CHECKING, Any

from hllm_jax.tokenizers.errors import MessageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from hllm_jax.data.records import Record
    from hllm_jax.tokenizers.tokenizer import Tokenizer

Rendered = tuple[list[int], list[int]] | MessageError
"""Tokens and weights of a conversation, or what is wrong with it."""
WORTH_STARTING = 49_152  # conversations (10 s) rendered here before workers (1 s to start) take over


def render_all(records: Iterable[Record], tokenizer: Tokenizer) -> list[Rendered]:
    """Render a chunk; a conversation that the template or the tokenizer refuses comes back as its error."""
    found: list[Rendered] = []
    for record in records:
        try:
            found.append(tokenizer.render(list(record.messages or ()), tools=record.tools))
        except MessageError as error:
            found.append(error)
    return found


def rendered_chunks(
    chunks: Iterable[list[tuple[str, Record]]], tokenizer: Tokenizer, workers: int | None
) -> Generator[tuple[list[tuple[str, Record]], list[Rendered]]]:
    """Yield every chunk with its renderings, in order; at most two chunks a worker are in memory.

    Args:
        chunks: lists of `(place, record)`.
        tokenizer: whose `render` is used; it is pickled once for each worker.
        workers: processes; 0: none; None: one a core once `WORTH_STARTING` conversations were rendered here.
    """
    count = (os.cpu_count() or 1) if workers is None else workers
    here, waiting = 0, iter(chunks)
    for chunk in waiting:
        if (workers is None and here < WORTH_STARTING) or count < (2 if workers is None else 1):
            here += len(chunk)
            yield chunk, render_all((record for _, record in chunk), tokenizer)
            continue
        with Workers(count, tokenizer) as pool:
            yield chunk, pool.submit(chunk).result()
            pending: deque[tuple[list[tuple[str, Record]], concurrent.futures.Future[list[Rendered]]]] = (
                deque()
            )
            for following in waiting:
                pending.append((following, pool.submit(following)))
                if len(pending) > 2 * count:
                    done, future = pending.popleft()
                    yield done, future.result()
            for done, future in pending:
                yield done, future.result()


class Workers:
    """Child processes that render; each is driven by one thread at a time."""

    def __init__(self, count: int, tokenizer: Tokenizer) -> None:
        command = [sys.executable, "-c", "from hllm_jax.data.rendering import serve; serve()"]
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)
        ]
        self.threads = concurrent.futures.ThreadPoolExecutor(count)
        for process in self.processes:
            send(process.stdin, (sys.path, pickle.dumps(tokenizer)))
            self.idle.put(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.threads.shutdown(wait=error[0] is None, cancel_futures=True)
        for process in self.processes:
            if error[0] is not None:
                process.kill()
            with contextlib.suppress(OSError):
                for pipe in (process.stdin, process.stdout):
                    if pipe:
                        pipe.close()
            process.wait()

    def submit(self, chunk: list[tuple[str, Record]]) -> concurrent.futures.Future[list[Rendered]]:
        """Render a chunk on the next idle process."""
        return self.threads.submit(self.render, [record for _, record in chunk])

    def render(self, records: list[Record]) -> list[Rendered]:
        """Render on one process.

        Raises:
            RuntimeError: the process died (its own words are on standard error).
        """
        process = self.idle.get()
        try:
            send(process.stdin, records)
            answer: list[Rendered] | Exception = pickle.load(stream(process.stdout))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise RuntimeError(f"a rendering process ended with status {process.wait()}") from error
        finally:
            self.idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve() -> None:
    """The worker's side: a tokenizer first, then chunk after chunk until the pipe closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not run into the pickles
    path, pickled = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    tokenizer = pickle.loads(pickled)
    while True:
        try:
            records = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: list[Rendered] | Exception = render_all(records, tokenizer)
        except Exception as error:  # a template error: the caller raises it
            answer = error
        send(answers, answer)


def send(pipe: IO[bytes] | None, value: Any) -> None:
    """Pickle a value into a pipe."""
    pickle.dump(value, stream(pipe), protocol=pickle.HIGHEST_PROTOCOL)
    stream(pipe).flush()


def stream(pipe: IO[bytes] | None) -> IO[bytes]:
    """The pipe, which is there because we asked for it."""
    assert pipe is not None
    return pipe
