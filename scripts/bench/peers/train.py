"""The peer of `bench train`: the same network in PyTorch eager, Llama of transformers, SDPA, fused AdamW.

Reads one JSON line with the sizes; then answers each `{"steps": n}` with the seconds they took, the last loss
and the most memory held so far.
"""

from __future__ import annotations

import json
import sys

import torch
from steps import answer
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    """Answer until standard input ends."""
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(attn_implementation="sdpa", use_cache=False, **setting["model"]))
    model = model.float().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting["rate"], betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    rows = torch.tensor(setting["rows"])
    tokens, targets = rows[:, :-1], rows[:, 1:].reshape(-1)

    def step() -> float:
        logits = model(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    print(json.dumps({"ready": True, "parameters": model.num_parameters()}), flush=True)
    answer(step)


if __name__ == "__main__":
    main()
