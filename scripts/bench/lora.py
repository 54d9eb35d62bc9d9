"""A step of fine-tuning SmolLM2-135M's shape with adapters, in tokens per second, against `peft`.

Both sides do whole steps in float32 on two cores (forward, backward, clip by the global norm, AdamW on
adapters of rank 8 of every matrix of the blocks) on the same four rows of 256 tokens. Steps alternate, the
ratio is the median of the pairs; memory is the most that each process ever held. The peer (`peft` on the
eager Llama of transformers, SDPA, fused AdamW) runs in `.venv-peers` (`make peers`); without it, ours alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import common

CORES = common.two_cores()

import jax  # noqa: E402 (after the number of cores is set)
import numpy as np  # noqa: E402

from hllm_jax.models import Decoder, Execution  # noqa: E402
from hllm_jax.models.config import LoRAConfig  # noqa: E402
from hllm_jax.models.families import presets  # noqa: E402
from hllm_jax.objectives import causal_lm  # noqa: E402
from hllm_jax.parallel import Layout, make_mesh, make_rules  # noqa: E402
from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer, make_train_step  # noqa: E402
from hllm_jax.training.metrics import peak_resident  # noqa: E402
from hllm_jax.training.platform import keep_memory, require_platform  # noqa: E402

BATCH, LENGTH, PAIRS, RATE, RANK = 4, 256, 6, 2e-4, 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()
    require_platform("cpu")

    config: Any = presets()["smollm2-135m"]
    model = Decoder(config, Execution(dtype="float32"))
    optimizer = make_optimizer(
        OptimizerConfig(weight_decay=0.0), ScheduleConfig(kind="constant", peak=RATE, warmup=0), 1000
    )
    layout = Layout(
        make_mesh(), make_rules("ddp"), model, optimizer, adapters=LoRAConfig(rank=RANK, alpha=2 * RANK)
    )
    step = make_train_step(causal_lm(model), optimizer, layout)
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (BATCH, LENGTH + 1)).astype(np.int32)
    ones = np.ones((BATCH, LENGTH), np.int32)
    batch: dict[str, Any] = {
        "tokens": rows[:, :-1],
        "targets": rows[:, 1:],
        "weights": ones.astype(np.float32),
        "segment_ids": ones,
        "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1,
    }
    state, batch = layout.init(seed=0), layout.put(batch)
    step.compile(state, batch)
    keep_memory()
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    held = {"state": state, "loss": float("nan")}

    def ours() -> float:
        start = time.perf_counter()
        held["state"], metrics = step(held["state"], batch)
        jax.block_until_ready(held["state"])
        held["loss"] = float(metrics["loss"])
        return BATCH * LENGTH / (time.perf_counter() - start)

    peer = None
    last: dict[str, Any] = {}
    if common.there():
        sizes = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.embed,
            "intermediate_size": config.mlp_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "max_position_embeddings": config.max_length,
            "rope_theta": config.rope_theta,
            "tie_word_embeddings": config.tie_embeddings,
        }
        setting = {"threads": len(CORES), "rate": RATE, "rank": RANK, "rows": rows.tolist(), "model": sizes}
        peer = common.Peer("lora.py", setting)
        if peer.ready["trained"] != trained:
            raise RuntimeError(f"the peer trains {peer.ready['trained']} numbers, ours {trained}")
        peer.ask({"steps": 1})

    def theirs() -> float:
        assert peer
        last.update(peer.ask({"steps": 1}))
        return BATCH * LENGTH / last["seconds"]

    ours()
    result: dict[str, Any] = {"unit": "tokens/s"}
    result |= common.alternate(ours, theirs if peer else None, PAIRS)
    result["memory"] = {"ours": peak_resident(), "peer": last.get("memory")}
    result["trained"] = trained
    result["loss"] = {"ours": round(held["loss"], 4), "peer": last.get("loss")}
    result["against"] = "peft and transformers in PyTorch, .venv-peers" if peer else "nothing (make peers)"
    if peer:
        peer.close()
    common.show(result)


if __name__ == "__main__":
    sys.exit(main())
