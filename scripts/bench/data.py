"""Tokenizing, packing and reading the embedded corpora, in tokens per second and core, against transformers.

Both sides tokenize the same text with the same byte-level BPE (one thread) and make rows of 512 of it; the
peer keeps everything in memory and knows no documents, ours reads from disk by random access and yields whole
batches with segments, positions and weights. Seconds are CPU seconds, so that a busy machine changes little;
pairs alternate and the ratio is the median. The peer runs in `.venv-peers` (`make peers`); without it, ours
alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# One thread: tokens per second *and core*. Set before the tokenizers library starts its pool.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from hllm_jax import data
from hllm_jax.tokenizers import TokenizerConfig
from hllm_jax.training.metrics import peak_resident

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"
LENGTH, BATCH, ROUNDS, BATCHES = 512, 8, 3, 100
TRAINING = 150.0  # tokens/s of training the 82.6M model on two such cores (facts of the train benchmark)


class Peer:
    """transformers in its own environment, answering round by round."""

    def __init__(self, folder: Path, tokenizer: Path, texts: Path) -> None:
        script = ROOT / "scripts" / "bench" / "peers" / "data.py"
        self.process = subprocess.Popen(
            [PEER, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ask(json.dumps({"tokenizer": str(tokenizer), "texts": str(texts), "length": LENGTH}))

    def ask(self, line: str = "go") -> dict[str, Any]:
        """One round."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def tokenizing(tokenizer: Any, texts: list[str]) -> tuple[int, float]:
    """(tokens, CPU seconds) of encoding everything."""
    start = time.process_time()
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return tokens, time.process_time() - start


def reading(batches: Any, first: int) -> tuple[int, float]:
    """(tokens, CPU seconds) of planning nothing anew and assembling `BATCHES` batches from disk."""
    start = time.process_time()
    for n in range(first, first + BATCHES):
        batches[n]
    return BATCHES * BATCH * LENGTH, time.process_time() - start


def prepared(section: Any, tokenizer: Any) -> tuple[Any, float]:
    """(tokenized data, tokens per CPU second) of the whole of `prepare`, from corpus to index, done anew."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        made = data.prepare(dataclasses.replace(section, cache=folder), tokenizer)
        return made.counts["tokens"], time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()
    section = data.DataConfig()
    tokenizer = data.tokenizer_for(TokenizerConfig(kind="byte_bpe"), section)
    default = data.tokenizer_for(TokenizerConfig(), section)
    texts = list(data.texts(section))
    batches = data.Batches(data.prepare(section, tokenizer), BATCH, LENGTH, seed=0)
    chat = data.DataConfig(sources=(data.SourceConfig(name="idiom-chat"),), packing="first_fit")
    chat_batches = data.Batches(data.prepare(chat, default), BATCH, LENGTH, seed=0)
    batches[0], chat_batches[0]

    rows: dict[str, list[float]] = {name: [] for name in ("tokenize", "read", "read_chat", "sentencepiece")}
    peers: dict[str, list[float]] = {"tokenize": [], "pack": []}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        listed = Path(folder) / "texts.json"
        listed.write_text(json.dumps(texts), "utf-8")
        peer = Peer(Path(folder), Path(folder) / "tokenizer.json", listed) if PEER.exists() else None
        for round_number in range(ROUNDS):
            for name, (tokens, seconds) in {
                "tokenize": tokenizing(tokenizer, texts),
                "sentencepiece": tokenizing(default, texts),
                "read": reading(batches, 1 + round_number * BATCHES),
                "read_chat": reading(chat_batches, 1 + round_number * BATCHES),
            }.items():
                rows[name].append(tokens / seconds)
            if peer:
                answer = peer.ask()
                peers["tokenize"].append(answer["tokens"] / answer["tokenizing"])
                peers["pack"].append(answer["tokens"] / answer["packing"])
        if peer:
            peer.close()
    tokens, seconds = prepared(section, default)
    chat_tokens, chat_seconds = prepared(chat, default)

    def pair(ours: list[float], theirs: list[float]) -> dict[str, float | None]:
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)] if theirs else []
        return {
            "ours": round(statistics.median(ours)),
            "peer": round(statistics.median(theirs)) if theirs else None,
            "ratio": round(statistics.median(ratios), 2) if ratios else None,
        }

    result = {
        "unit": "tokens per CPU second (one core)",
        **pair(rows["tokenize"], peers["tokenize"]),
        "stages": {
            "tokenize, byte-level BPE": pair(rows["tokenize"], peers["tokenize"]),
            "tokenize, SentencePiece BPE (the default)": pair(rows["sentencepiece"], []),
            "prepare text, all of it (the default)": pair([tokens / seconds], []),
            "prepare conversations, all of it": pair([chat_tokens / chat_seconds], []),
            "read and pack, concat": pair(rows["read"], peers["pack"]),
            "read and pack, first fit": pair(rows["read_chat"], []),
        },
        "reading over training": {
            "reading": round(statistics.median(rows["read"])),
            "training": TRAINING,
            "ratio": round(statistics.median(rows["read"]) / TRAINING),
            "goal": 20,
        },
        "fill": {
            "concat": round(batches.stats["fill"], 4),
            "first fit": round(chat_batches.stats["fill"], 4),
        },
        "peer is": "transformers in .venv-peers" if peers["tokenize"] else "not there (make peers)",
        "memory_mb": round((peak_resident() or 0) / 2**20),
    }
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
