"""An iteration of PPO on SmolLM2's shape with 6 layers, in answers per second, against `trl` 1.12.

Both sides sample an answer of at most 32 tokens to each of 16 prompts of 16 tokens, have a reward model score
it, ask reference and value model, and learn from all of it twice (AdamW on all weights of policy and value
model), in float32 on two cores: four separate models. Iterations alternate, the ratio is the median of the
pairs. `shared` is ours once more with adapters of rank 8 of policy, value and reward model on one base. The
peer (the PPO trainer of `trl` 1.12.0, the last release with one, on Llamas of transformers, SDPA) runs in
`.venv-peers` (`make peers`); without it, ours alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import common

CORES = common.two_cores()

import jax  # noqa: E402 (after the number of cores is set)
import numpy as np  # noqa: E402

from hllm_jax.models import Decoder, Execution  # noqa: E402
from hllm_jax.models.config import LoRAConfig  # noqa: E402
from hllm_jax.models.families import presets  # noqa: E402
from hllm_jax.parallel import Layout, make_mesh, make_rules  # noqa: E402
from hllm_jax.rl import (  # noqa: E402
    DeviceReward,
    Iteration,
    KLConfig,
    PPOConfig,
    RolloutConfig,
    first_control,
    make_experience,
    make_loss,
    make_roles,
    reward_scores,
)
from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer  # noqa: E402
from hllm_jax.training.metrics import peak_resident  # noqa: E402
from hllm_jax.training.platform import keep_memory, require_platform  # noqa: E402

ROWS, WINDOW, LAYERS, PAIRS, RATE = 16, 16, 6, 3, 1e-6
SETTINGS = RolloutConfig(prompt_window=WINDOW, max_tokens=32, epochs=2, minibatches=1)
TOLD = PPOConfig(kl=KLConfig(kind="fixed"), truncation="penalise", truncation_value=1.0)
PARTS = ("rollout", "scoring", "update")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    parser.parse_args()
    require_platform("cpu")
    config: Any = dataclasses.replace(presets()["smollm2-135m"], layers=LAYERS)
    asked = np.random.default_rng(0).integers(3, config.vocab_size, (ROWS, WINDOW)).astype(np.int32)

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
            "coefficient": TOLD.kl.coefficient,
            "model": sizes,
            "tokens": SETTINGS.max_tokens,
            "epochs": SETTINGS.epochs,
            "rows": asked.tolist(),
        }
        peer = common.Peer("ppo.py", setting)
        peer.ask({"steps": 1})

    def theirs() -> float:
        assert peer
        last.update(peer.ask({"steps": 1}))
        return ROWS / last["seconds"]

    against = theirs if peer else None
    result: dict[str, Any] = {"unit": "answers/s"}
    result |= measured(config, asked, None, against)
    result["memory"] = {"ours": peak_resident(), "peer": last.get("memory")}
    result["shared"] = measured(config, asked, LoRAConfig(rank=8, alpha=16), against)
    if peer:
        result["peer_share"] = {"rollout": round(last["rollout"] / last["seconds"], 2)}
        peer.close()
    result["against"] = (
        "trl 1.12 and transformers in PyTorch, .venv-peers" if peer else "nothing (make peers)"
    )
    common.show(result)


def measured(
    config: Any, asked: np.ndarray, adapters: LoRAConfig | None, theirs: Callable[[], float] | None
) -> dict[str, Any]:
    """Speeds of ours and theirs, and what the parts of ours take."""
    model = Decoder(config, Execution(dtype="float32"))
    roles = make_roles(TOLD, model, adapters, has_reward=True)
    optimizer = make_optimizer(
        OptimizerConfig(weight_decay=0.0), ScheduleConfig(kind="constant", peak=RATE, warmup=0), 1000
    )
    layout = Layout(
        make_mesh(),
        make_rules("ddp"),
        model,
        optimizer,
        trainable=roles.trainable,
        adapters=adapters,
        variables=roles.variables,
        control=first_control(TOLD),
    )
    step = Iteration(
        model,
        layout,
        optimizer,
        SETTINGS,
        prompts=ROWS,
        stop_ids=(1,),
        vocab=config.vocab_size,
        reward=DeviceReward(functools.partial(reward_scores, roles)),
        experience=make_experience(roles, TOLD, SETTINGS, config.vocab_size),
        loss=make_loss(roles, TOLD, SETTINGS, config.vocab_size),
        view=functools.partial(roles.view, "policy"),
    )
    lengths, records = np.full(ROWS, WINDOW, np.int32), np.arange(ROWS, dtype=np.int32)
    batch = layout.put({"tokens": asked, "lengths": lengths, "records": records})
    held = {"state": layout.init(seed=0)}
    step.compile(held["state"], batch)
    keep_memory()
    shares: list[list[float]] = []

    def ours() -> float:
        start = time.perf_counter()
        held["state"], metrics = step(held["state"], batch)
        seconds = time.perf_counter() - start
        shares.append([float(metrics[f"{part}_seconds"]) / seconds for part in PARTS])
        return ROWS / seconds

    ours()
    shares.clear()
    found: dict[str, Any] = common.alternate(ours, theirs, PAIRS, digits=2, seconds=90.0)
    mean = [statistics.mean(column) for column in zip(*shares, strict=True)]
    found["share"] = {part: round(share, 2) for part, share in zip(PARTS, mean, strict=True)}
    state = jax.tree.leaves((held["state"].trainable, held["state"].frozen, held["state"].opt_state))
    found["state_bytes"] = sum(leaf.nbytes for leaf in state)
    return found


if __name__ == "__main__":
    sys.exit(main())
