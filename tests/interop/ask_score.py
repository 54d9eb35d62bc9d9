"""Reward models of `transformers`: draws some and says what they score, or scores those of the library.

    ask_score.py FOLDER

Runs in the peers environment. FOLDER gets a model in `llama` and in `gpt2`, with `scores.json`; where `ours`
is in there, what it scores is in `told.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

#: Rows of different lengths, filled up with the end of text, which is the pad token.
PAD = 2
ROWS = [[5, 7, 3, 9, 11, 4], [8, 6], [12, 13, 14, 15]]


def padded() -> torch.Tensor:
    width = max(map(len, ROWS))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in ROWS])


def scores(model: Any) -> list[float]:
    with torch.no_grad():
        held = torch.tensor([[1] * len(row) + [0] * (6 - len(row)) for row in ROWS])
        return model.eval()(padded(), attention_mask=held).logits[:, 0].tolist()


def main(folder: Path) -> None:
    if (folder / "ours").is_dir():
        told = {
            each.name: scores(AutoModelForSequenceClassification.from_pretrained(each))
            for each in (folder / "ours").iterdir()
        }
        (folder / "told.json").write_text(json.dumps(told))
        return
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "num_labels": 1, "pad_token_id": PAD, "initializer_range": 0.2}
    llama = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=PAD,
        **sizes,
    )
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, eos_token_id=PAD, **sizes)
    told = {}
    for name, model in (
        ("llama", LlamaForSequenceClassification(llama)),
        ("gpt2", GPT2ForSequenceClassification(gpt2)),
    ):
        model.save_pretrained(folder / name)
        told[name] = scores(model)
    (folder / "scores.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
