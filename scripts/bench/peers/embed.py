"""The peer of `bench embed`: a BERT of transformers and mean pooling, float32, sorted batches of 32.

Reads one JSON line `{"folder", "threads", "length", "texts"}`; then answers each line with the vectors, the
seconds they took, and the most memory held so far.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from memory import peak_memory
from transformers import AutoModel, AutoTokenizer

BATCH = 32


def main() -> None:
    """Answer until standard input ends."""
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    tokenizer = AutoTokenizer.from_pretrained(setting["folder"])
    model = AutoModel.from_pretrained(setting["folder"], dtype=torch.float32).eval()
    texts, limit = setting["texts"], setting["length"]
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        vectors = embed(model, tokenizer, texts, limit)
        seconds = time.perf_counter() - start
        memory = peak_memory()
        answer = {"vectors": vectors.tolist(), "seconds": seconds, "memory": memory}
        print(json.dumps(answer), flush=True)


def embed(model, tokenizer, texts: list[str], limit: int) -> torch.Tensor:
    """The vectors of the texts, in their order."""
    out = torch.zeros((len(texts), model.config.hidden_size))
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            batch = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            keep = batch["attention_mask"][:, :, None].float()
            out[chosen] = torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=-1)
    return out


if __name__ == "__main__":
    main()
