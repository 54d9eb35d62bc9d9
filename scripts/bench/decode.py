"""Decoding SmolLM2-135M in float32, one and 16 sequences, in tokens per second, against transformers.

Both read the same GGUF file, have two cores, and continue the same prompts greedily by the same number of
tokens; a request is timed whole, reading the prompts included. Rounds alternate, the ratio is the median of
the pairs. The peer runs in `.venv-peers` (`make peers`); without it, ours alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import common

CORES = common.two_cores()

import hllm_jax  # noqa: E402 (after the number of cores is set)
from hllm_jax.generation import Engine, Request, Sampling  # noqa: E402
from hllm_jax.interop import resolve  # noqa: E402
from hllm_jax.training.metrics import peak_resident  # noqa: E402

MODEL = "smollm2-135m-instruct"
PROMPT_TOKENS, TOKENS, PAIRS = 32, 128, 5
TEXT = (
    "On the first day of the fair, the baker opened her shop an hour before sunrise. She had baked forty "
    "loaves, and she meant to sell them all before the bells rang at noon. By eight o'clock a long line of "
    "people stood in the street, and the smell of warm bread had reached the river."
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()

    start = time.perf_counter()
    model = hllm_jax.load(MODEL, dtype="float32")
    loading = time.perf_counter() - start
    ids = model.tokenizer.encode(TEXT)
    prompts = [ids[i : i + PROMPT_TOKENS] for i in range(16)]
    # The peer is told not to stop either.
    model.tokenizer.stop_ids = ()
    engine = Engine(model.model, model.variables, model.tokenizer)
    peer = None
    if common.there():
        peer = common.Peer("decode.py", {"gguf": str(file_of(MODEL)), "threads": len(CORES)})

    result: dict[str, object] = {"unit": "tokens/s"}
    memory = {"ours": 0, "peer": 0}
    for name, sequences in (("one", 1), ("sixteen", 16)):
        asked = prompts[:sequences]
        requests = [
            Request(tokens=tuple(p), max_tokens=TOKENS, sampling=Sampling(temperature=0.0)) for p in asked
        ]
        said: dict[str, list[list[int]]] = {}

        def ours() -> float:
            start = time.perf_counter()
            completions = engine.run(requests)  # noqa: B023
            seconds = time.perf_counter() - start
            said["ours"] = [completion.tokens for completion in completions]  # noqa: B023
            return sum(map(len, said["ours"])) / seconds  # noqa: B023

        def theirs() -> float:
            answer = peer.ask({"prompts": asked, "tokens": TOKENS})  # noqa: B023
            said["peer"], memory["peer"] = answer["tokens"], answer["memory"]  # noqa: B023
            return sum(map(len, answer["tokens"])) / answer["seconds"]

        start = time.perf_counter()
        ours()
        compiling = time.perf_counter() - start
        if peer:
            theirs()
        measured: dict[str, object] = dict(common.alternate(ours, theirs if peer else None, PAIRS))
        if peer:
            same = [a == b for a, b in zip(said["ours"], said["peer"], strict=True)]
            measured["rows with the same tokens"] = f"{sum(same)} of {len(same)}"
        result[name] = {**measured, "first request, seconds": round(compiling, 1)}
        if name == "one":
            result |= {key: measured[key] for key in ("ours", "peer", "ratio")}
    memory["ours"] = peak_resident()
    result["memory"] = memory
    result["loading, seconds"] = round(loading, 1)
    result["against"] = "transformers generate in .venv-peers" if peer else "nothing (make peers)"
    if peer:
        peer.close()
    common.show(result)


def file_of(model: str) -> Path:
    """The GGUF file that a registered name stands for."""
    return resolve(model).fetch()


if __name__ == "__main__":
    sys.exit(main())
