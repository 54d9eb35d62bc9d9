"""An iteration of GRPO on SmolLM2's shape with 6 layers, in answers per second, against the newest `trl`.

Both sides sample 16 answers of at most 32 tokens (8 to each of 2 prompts of 16 tokens), have them scored by a
Python function of their texts, ask a reference that is a copy of the first weights, and learn from them twice
(AdamW on all weights, KL in the loss), in float32 on two cores. Iterations alternate, the ratio is the median
of the pairs. The peer (the GRPO trainer of `trl` 1.16 on the eager Llama of transformers, SDPA) runs in
`.venv-peers` (`make peers`); without it, ours alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import common

CORES = common.two_cores()

import numpy as np  # noqa: E402

from hllm_jax.models import Decoder, Execution  # noqa: E402
from hllm_jax.models.families import presets  # noqa: E402
from hllm_jax.parallel import Layout, make_mesh, make_rules  # noqa: E402
from hllm_jax.rl import (  # noqa: E402
    GRPOConfig,
    HostReward,
    Iteration,
    RolloutConfig,
    make_grpo,
    make_roles,
    policy_of,
)
from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer  # noqa: E402
from hllm_jax.training.metrics import peak_resident  # noqa: E402
from hllm_jax.training.platform import keep_memory, require_platform  # noqa: E402

PROMPTS, WINDOW, LAYERS, PAIRS, RATE, BETA = 2, 16, 6, 5, 1e-6, 0.04
SETTINGS = RolloutConfig(group=8, prompt_window=WINDOW, max_tokens=32, epochs=2, minibatches=1)
ROWS = PROMPTS * SETTINGS.group
PARTS = ("rollout", "scoring", "update")


class Words:
    """A tokenizer whose tokens are words, `t7`."""

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = False) -> str:
        """Text of ids."""
        del skip_special
        return " ".join(f"t{int(i)}" for i in ids)


def even(prompts: list[str], completions: list[str], records: list[dict[str, Any]]) -> list[float]:
    """The share of even tokens."""
    del prompts, records
    return [
        sum(int(word[1:]) % 2 == 0 for word in text.split()) / SETTINGS.max_tokens for text in completions
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()
    require_platform("cpu")

    config: Any = dataclasses.replace(presets()["smollm2-135m"], layers=LAYERS)
    model = Decoder(config, Execution(dtype="float32"))
    optimizer = make_optimizer(
        OptimizerConfig(weight_decay=0.0), ScheduleConfig(kind="constant", peak=RATE, warmup=0), 1000
    )
    roles = make_roles(None, model)
    layout = Layout(
        make_mesh(),
        make_rules("ddp"),
        model,
        optimizer,
        trainable=roles.trainable,
        variables=roles.variables,
    )
    experience, loss = make_grpo(model, GRPOConfig(beta=BETA), SETTINGS, config.vocab_size)
    step = Iteration(
        model,
        layout,
        optimizer,
        SETTINGS,
        prompts=PROMPTS,
        stop_ids=(1,),
        vocab=config.vocab_size,
        reward=HostReward(even, Words(), lambda number: {"number": number}),
        experience=experience,
        loss=loss,
        view=policy_of,
    )
    rng = np.random.default_rng(0)
    asked = rng.integers(3, config.vocab_size, (PROMPTS, WINDOW)).astype(np.int32)
    lengths, records = np.full(PROMPTS, WINDOW, np.int32), np.arange(PROMPTS, dtype=np.int32)
    batch = layout.put({"tokens": asked, "lengths": lengths, "records": records})
    state = layout.init(seed=0)
    step.compile(state, batch)
    keep_memory()
    held: dict[str, Any] = {"state": state}
    shares: list[list[float]] = []

    def ours() -> float:
        start = time.perf_counter()
        held["state"], metrics = step(held["state"], batch)
        held["tokens"] = float(metrics["answer_length"])
        seconds = time.perf_counter() - start
        shares.append([float(metrics[f"{part}_seconds"]) / seconds for part in PARTS])
        return ROWS / seconds

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
        setting = {
            "threads": len(CORES),
            "rate": RATE,
            "beta": BETA,
            "model": sizes,
            "prompts": PROMPTS,
            "group": SETTINGS.group,
            "tokens": SETTINGS.max_tokens,
            "epochs": SETTINGS.epochs,
            "minibatches": SETTINGS.minibatches,
            "texts": [Words().decode(row) for row in asked],
        }
        peer = common.Peer("grpo.py", setting)
        peer.ask({"steps": 1})

    def theirs() -> float:
        assert peer
        last.update(peer.ask({"steps": 1}))
        return ROWS / last["seconds"]

    ours()
    shares.clear()
    result: dict[str, Any] = {"unit": "answers/s"}
    result |= common.alternate(ours, theirs if peer else None, PAIRS, digits=2)
    mean = [statistics.mean(column) for column in zip(*shares, strict=True)]
    result["share"] = {part: round(share, 2) for part, share in zip(PARTS, mean, strict=True)}
    if peer:
        result["peer_share"] = {"rollout": round(last["rollout"] / last["seconds"], 2)}
    result["memory"] = {"ours": peak_resident(), "peer": last.get("memory")}
    result["tokens_of_an_answer"] = held["tokens"]
    result["against"] = (
        f"trl {peer.ready['trl']} and transformers in PyTorch, .venv-peers"
        if peer
        else "nothing (make peers)"
    )
    if peer:
        peer.close()
    common.show(result)


if __name__ == "__main__":
    sys.exit(main())
