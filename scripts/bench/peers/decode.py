"""The peer of `bench decode`: `generate` of transformers on the same GGUF file, float32, two threads.

Reads one JSON line `{"gguf": file, "threads": n}`; then answers each `{"prompts": [[id, …], …], "tokens": n}`
with the new tokens, the seconds they took, and the most memory held so far.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from memory import peak_memory
from transformers import AutoModelForCausalLM


def main() -> None:
    """Answer until standard input ends."""
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    file = Path(setting["gguf"])
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    print(json.dumps({"ready": True, "parameters": model.num_parameters()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts, count = torch.tensor(asked["prompts"]), asked["tokens"]
        start = time.perf_counter()
        with torch.inference_mode():
            rows = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - start
        memory = peak_memory()
        tokens = rows[:, prompts.shape[1] :].tolist()
        print(json.dumps({"tokens": tokens, "seconds": seconds, "memory": memory}), flush=True)


if __name__ == "__main__":
    main()
