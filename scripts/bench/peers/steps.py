"""What peers that train share: they answer each `{"steps": n}` of standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from memory import peak_memory


def answer(step: Callable[[], float]) -> None:
    """The seconds of so many steps, the last loss and the most memory so far, until standard input ends."""
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(json.loads(line)["steps"]):
            loss = step()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "loss": loss, "memory": peak_memory()}), flush=True)
