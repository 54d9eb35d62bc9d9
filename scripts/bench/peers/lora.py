"""The peer of `bench lora`: `peft` on the Llama of transformers, PyTorch eager, SDPA, fused AdamW.

Reads one JSON line with the sizes; then answers each `{"steps": n}` with the seconds they took, the last loss
and the most memory held so far.
"""

from __future__ import annotations

import json
import sys

import torch
from peft import LoraConfig, get_peft_model
from steps import answer
from transformers import LlamaConfig, LlamaForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Answer until standard input ends."""
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(attn_implementation="sdpa", use_cache=False, **setting["model"]))
    rank = setting["rank"]
    model = get_peft_model(
        base.float(),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=setting["rate"], betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    rows = torch.tensor(setting["rows"])
    tokens, targets = rows[:, :-1], rows[:, 1:].reshape(-1)

    def step() -> float:
        logits = model(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    count = sum(weight.numel() for weight in trained)
    print(json.dumps({"ready": True, "trained": count}), flush=True)
    answer(step)


if __name__ == "__main__":
    main()
