"""Training the book's 82.6M model in float32 on two cores, in tokens per second, against PyTorch.

Both sides do whole steps (forward, backward, clip by the global norm, AdamW) on the same two rows of 512
tokens. Steps alternate, the ratio is the median of the pairs; memory is the most that each process ever held.
The peer (eager Llama of transformers, SDPA, fused AdamW) runs in `.venv-peers` (`make peers`); without
it, ours alone. Then follow, for ours: the time of a step by length and by depth, and of compilation by depth.
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

from hllm_jax.models import Decoder, DecoderConfig, Execution  # noqa: E402
from hllm_jax.objectives import causal_lm  # noqa: E402
from hllm_jax.parallel import Layout, make_mesh, make_rules  # noqa: E402
from hllm_jax.training import (  # noqa: E402
    OptimizerConfig,
    ScheduleConfig,
    make_optimizer,
    make_train_step,
)
from hllm_jax.training.metrics import measured_peak, peak_resident  # noqa: E402
from hllm_jax.training.platform import keep_memory, require_platform  # noqa: E402

BATCH, LENGTH, PAIRS, RATE = 2, 512, 8, 2e-4


class Training:
    """A model, its state and one batch that it is trained on again and again."""

    def __init__(self, length: int = LENGTH, layers: int = 12, scan_layers: bool = False) -> None:
        self.config = DecoderConfig(max_length=length, layers=layers)
        model = Decoder(self.config, Execution(dtype="float32", scan_layers=scan_layers))
        optimizer = make_optimizer(
            OptimizerConfig(), ScheduleConfig(kind="constant", peak=RATE, warmup=0), 1000
        )
        self.layout = Layout(make_mesh(), make_rules("ddp"), model, optimizer)
        self.step = make_train_step(causal_lm(model), optimizer, self.layout)
        self.rows = np.random.default_rng(0).integers(0, self.config.vocab_size, (BATCH, length + 1))
        self.rows = self.rows.astype(np.int32)
        ones = np.ones((BATCH, length), np.int32)
        self.batch: dict[str, Any] = {
            "tokens": self.rows[:, :-1],
            "targets": self.rows[:, 1:],
            "weights": ones.astype(np.float32),
            "segment_ids": ones,
            "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1,
        }
        self.state: Any = None
        self.loss = float("nan")

    def run(self) -> float:
        """One step; its seconds."""
        start = time.perf_counter()
        if self.state is None:
            self.state, self.batch = self.layout.init(seed=0), self.layout.put(self.batch)
            self.step.compile(self.state, self.batch)
            keep_memory()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        self.loss = float(metrics["loss"])
        return time.perf_counter() - start

    def compiling(self) -> float:
        """Seconds to trace and compile the step, without any array."""
        start = time.perf_counter()
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.batch.items()}
        self.step.lower(self.layout.abstract_state, shapes).compile()
        return time.perf_counter() - start

    def peer_setting(self) -> dict[str, Any]:
        """The same network and batch, as the peer reads them."""
        c = self.config
        sizes = {
            "vocab_size": c.vocab_size,
            "hidden_size": c.embed,
            "intermediate_size": c.mlp_size,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv_heads,
            "max_position_embeddings": c.max_length,
            "rms_norm_eps": c.norm_eps,
            "tie_word_embeddings": c.tie_embeddings,
        }
        return {"threads": len(CORES), "rate": RATE, "rows": self.rows.tolist(), "model": sizes}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()
    # As a run does.
    require_platform("cpu")
    # The first step is to be what a new user waits for.
    jax.config.update("jax_enable_compilation_cache", False)

    training, tokens = Training(), BATCH * LENGTH
    first = training.run()
    last: dict[str, Any] = {}
    peer = None
    if common.there():
        peer = common.Peer("train.py", training.peer_setting())
        if peer.ready["parameters"] != training.config.parameters():
            raise RuntimeError(f"the peer has {peer.ready['parameters']} parameters, ours has not")
        peer.ask({"steps": 1})

    def theirs() -> float:
        assert peer
        last.update(peer.ask({"steps": 1}))
        return tokens / last["seconds"]

    result: dict[str, Any] = {"unit": "tokens/s"}
    result |= common.alternate(lambda: tokens / training.run(), theirs if peer else None, PAIRS)
    result["memory"] = {"ours": peak_resident(), "peer": last.get("memory")}
    result["first step, seconds"] = round(first, 1)
    peak = measured_peak()
    flops = training.config.flops_per_token(LENGTH)
    result["matmul peak, GFLOP/s"] = round(peak / 1e9)
    for side in ("ours", "peer"):
        if result[side]:
            result[f"share of the peak, {side}"] = round(result[side] * flops / peak, 2)
    result["loss"] = {"ours": round(training.loss, 4), "peer": last.get("loss")}
    result["against"] = "transformers in PyTorch, .venv-peers" if peer else "nothing (make peers)"
    if peer:
        peer.close()
    del training

    result["seconds of a step by length (3 layers)"] = {
        length: seconds(Training(length=length, layers=3)) for length in (LENGTH, 2 * LENGTH, 4 * LENGTH)
    }
    result["seconds of a step by layers"] = {n: seconds(Training(layers=n)) for n in (3, 6, 12)}
    result["seconds to compile by scanned layers"] = {
        n: round(Training(layers=n, scan_layers=True).compiling(), 1) for n in (12, 48)
    }
    common.show(result)


def seconds(training: Training, steps: int = 3) -> float:
    """The fastest step after the first, in seconds."""
    training.run()
    return round(min(training.run() for _ in range(steps)), 2)


if __name__ == "__main__":
    sys.exit(main())
