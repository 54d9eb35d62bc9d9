"""What the benchmarks share: a peer in a process of its own, alternating pairs, memory, and the printing."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
PYTHON = ROOT / ".venv-peers" / "bin" / "python"


def two_cores() -> list[int]:
    """Keep this process and those it starts on two cores, so that both sides have the same; call it first."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(len(cores))
    return cores


class Peer:
    """A script of `peers/` in `.venv-peers`: one JSON line in, one JSON line out.

    Args:
        script: its file name; it reads `setting` as its first line and answers `{"ready": true, …}`.
        setting: whatever it needs.
    """

    def __init__(self, script: str, setting: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [PYTHON, PEERS / script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self.ask(setting)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a question and wait for its answer.

        Raises:
            RuntimeError: the peer has ended.
        """
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer {self.process.args} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def there() -> bool:
    """Whether the published implementations are installed (`make peers`)."""
    return PYTHON.exists()


def alternate(
    ours: Callable[[], float],
    peer: Callable[[], float] | None,
    pairs: int,
    digits: int = 1,
    seconds: float = 150.0,
) -> dict[str, float | None]:
    """Speeds measured in turns, so that a busy minute hits both.

    Args:
        ours, peer: measure once and return the speed; None: no peer.
        pairs: how often.
        digits: to round to.
        seconds: begin no further pair after this time: a busy machine gets fewer pairs, not a longer run.

    Returns:
        Medians of ours and of the peer, and the median of the ratios of the pairs.
    """
    end = time.monotonic() + seconds
    measured = [(ours(), peer() if peer else None)]
    while len(measured) < pairs and time.monotonic() < end:
        measured.append((ours(), peer() if peer else None))
    ratios = [a / b for a, b in measured if b]
    return {
        "ours": round(statistics.median(a for a, _ in measured), digits),
        "peer": round(statistics.median(b for _, b in measured if b), digits) if ratios else None,
        "ratio": round(statistics.median(ratios), 2) if ratios else None,
        "pairs": len(measured),
    }


def show(result: dict[str, Any]) -> None:
    """Print the result as JSON."""
    json.dump(result, sys.stdout, indent=2, ensure_ascii=False)
    print()
