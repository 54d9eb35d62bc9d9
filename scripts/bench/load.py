"""SmolLM2's GGUF file to a model and tokenizer in memory, in seconds, against transformers.

Both read the same file into float32 on two cores, each time in a process that has imported its libraries
and loaded nothing yet. The ratio is the median of the pairs (the peer's seconds over ours). The peer runs in
`.venv-peers` (`make peers`); without it, ours alone. `first token, seconds` is ours, compilation included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import common

CORES = common.two_cores()

from hllm_jax.interop import resolve  # noqa: E402 (after the number of cores is set)

MODEL, PAIRS = "smollm2-135m-instruct", 3

OURS = """
import json, sys, time
import jax
from hllm_jax.generation.load import load
from hllm_jax.training.metrics import peak_resident
import hllm_jax.tokenizers.gguf, hllm_jax.training.pretrained
start = time.perf_counter()
model = load(sys.argv[1], dtype="float32")
jax.block_until_ready(model.variables)
loaded = time.perf_counter()
memory = peak_resident()
model.generate("What is the capital of France?", max_tokens=1, temperature=0.0)
print(json.dumps({"seconds": loaded - start, "first": time.perf_counter() - start, "memory": memory}))
"""


def ours(file: str) -> dict[str, float]:
    """One load in a new process."""
    done = subprocess.run([sys.executable, "-c", OURS, file], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def theirs(file: str) -> dict[str, float]:
    """The same by the peer."""
    peer = common.Peer("load.py", {"gguf": file, "threads": len(CORES)})
    peer.close()
    return peer.ready


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()
    file = str(resolve(MODEL).fetch())
    pairs = [(ours(file), theirs(file) if common.there() else None) for _ in range(PAIRS)]
    peers = [peer for _, peer in pairs if peer]
    result: dict[str, object] = {
        "unit": "seconds",
        "ours": round(statistics.median(mine["seconds"] for mine, _ in pairs), 2),
        "peer": round(statistics.median(peer["seconds"] for peer in peers), 2) if peers else None,
        "ratio": None,
        "first token, seconds": round(statistics.median(mine["first"] for mine, _ in pairs), 1),
        "memory": {
            "ours": max(mine["memory"] for mine, _ in pairs),
            "peer": max((peer["memory"] for peer in peers), default=None),
        },
        "against": "transformers in .venv-peers" if peers else "nothing (make peers)",
    }
    if peers:
        ratios = [peer["seconds"] / mine["seconds"] for mine, peer in pairs if peer]
        result["ratio"] = round(statistics.median(ratios), 1)
    common.show(result)


if __name__ == "__main__":
    sys.exit(main())
