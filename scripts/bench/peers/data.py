"""The peer of `bench data`: transformers' fast tokenizer and the concatenate-and-chunk of its own examples.

Reads one JSON line `{"tokenizer": folder, "texts": file, "length": L}`; then, for each line "go" on standard
input, answers with one JSON line of tokens and CPU seconds for tokenizing and for packing.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast


def group_texts(documents: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """`group_texts` as transformers' run_clm example describes it: join, cut, labels are a copy."""
    joined = list(itertools.chain.from_iterable(documents))
    total = len(joined) // length * length
    rows = [joined[i : i + length] for i in range(0, total, length)]
    return {"input_ids": np.array(rows), "labels": np.array([row.copy() for row in rows])}


def main() -> None:
    """Answer until standard input ends."""
    setting = json.loads(sys.stdin.readline())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=setting["tokenizer"])
    texts = json.loads(Path(setting["texts"]).read_text("utf-8"))
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        documents = tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokenizing = time.process_time() - start
        start = time.process_time()
        group_texts(documents, setting["length"])
        packing = time.process_time() - start
        tokens = sum(map(len, documents))
        print(json.dumps({"tokens": tokens, "tokenizing": tokenizing, "packing": packing}), flush=True)


if __name__ == "__main__":
    main()
