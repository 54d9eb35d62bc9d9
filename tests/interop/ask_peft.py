"""Adapters that `peft` makes, trains and reads, on small models of `transformers`.

    ask_peft.py make FOLDER      writes, for each case, base/ and adapter/ and what came out as told.npz
    ask_peft.py read FOLDER      reads FOLDER/<case>/ours, an adapter of ours, and writes logits as read.npz

Runs in the peers environment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

#: Case -> arguments of `LoraConfig`.
CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": LAYERS, "use_rslora": True},
    "dora": {"r": 3, "lora_alpha": 6, "target_modules": LAYERS, "use_dora": True},
    "ends": {"r": 2, "lora_alpha": 5, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "ranks": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LAYERS,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
        "alpha_pattern": {"k_proj": 3},
    },
    "conv": {"r": 4, "lora_alpha": 8, "target_modules": ["c_proj"], "fan_in_fan_out": True},
}
RATE, BETAS, EPS, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1


def base_of(case: str) -> Any:
    """A model with weights that are large enough to matter."""
    torch.manual_seed(len(case))
    if case == "conv":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=67,
                n_positions=64,
                n_embd=24,
                n_layer=2,
                n_head=4,
                initializer_range=0.2,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=10, max_position_embeddings=64, tie_word_embeddings=False,
            initializer_range=0.2,
        )
    )  # fmt: skip


def make(folder: Path) -> None:
    """Adapters after some random steps, logits before, merged, and after a step of AdamW."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, 67, (3, 17)))
    for case, options in CASES.items():
        base = base_of(case)
        base.save_pretrained(folder / case / "base")
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.add_(0.1 * torch.randn_like(weight))
        model.save_pretrained(folder / case / "adapter")
        told = {"tokens": tokens.numpy(), "logits": model(tokens).logits.detach().numpy()}
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        told["count"] = np.array(sum(weight.numel() for weight in trained))
        optimizer = torch.optim.AdamW(trained, lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        told["loss"] = loss.detach().numpy()
        told["after"] = model(tokens).logits.detach().numpy()
        model.save_pretrained(folder / case / "after")
        told["merged"] = model.merge_and_unload()(tokens).logits.detach().numpy()
        np.savez(folder / case / "told.npz", **told)


def read(folder: Path) -> None:
    """Logits of our adapters on their bases."""
    for case in CASES:
        model = AutoModelForCausalLM.from_pretrained(folder / case / "base")
        model = PeftModel.from_pretrained(model, folder / case / "ours")
        tokens = torch.from_numpy(np.load(folder / case / "told.npz")["tokens"])
        np.savez(folder / case / "read.npz", logits=model(tokens).logits.detach().numpy())


if __name__ == "__main__":
    {"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
