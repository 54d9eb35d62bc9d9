"""The peer of `bench load`: transformers reads one GGUF file, weights and tokenizer, in float32.

Reads one JSON line `{"gguf": file, "threads": n}` and answers with the seconds and the most memory held.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from memory import peak_memory
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load once and answer."""
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    file = Path(setting["gguf"])
    start = time.perf_counter()
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    seconds = time.perf_counter() - start
    memory = peak_memory()
    print(json.dumps({"ready": True, "seconds": seconds, "memory": memory}), flush=True)


if __name__ == "__main__":
    main()
