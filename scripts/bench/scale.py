"""What strategies cost on 8 TPU chips that are not here: operations, memory and communication, as compiled.

The train step of a small decoder (4 layers, width 1024, rows of 512 tokens, one a chip) is compiled for
v5e:2x4 with each strategy. For each: `flops_ratio`, operations of the compiled program over those of the
model, without remat; `peak_mb` and `temporaries_mb`; and `collectives_ratio`, elements that a chip sends on a
ring (an all-reduce counts twice) over the theoretical minimum: 2Ψ for ddp, ZeRO-1 and 2, 3Ψ for ZeRO-3
(Rajbhandari et al. 2020, section 7), for hsdp 3Ψ inside of a group and 2Ψ/g across, for tensor parallelism
four all-reduces of the activations a layer (Shoeybi et al. 2019). `32 layers` and so on are ZeRO-3 with full
remat at that depth: the seconds that compiling takes (those of the processors are steadier than those of the
clock), and the ratio of operations with remat. It needs libtpu (`make setup EXTRAS=plan`); nothing runs on a
device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from hllm_jax.cli.plan import QUIET

os.environ["JAX_PLATFORMS"] = "cpu"
for name, value in QUIET.items():
    os.environ.setdefault(name, value)

from hllm_jax.parallel.planning.topology import TopologyError  # noqa: E402 (after the environment is set)
from hllm_jax.planning import Plan, plan  # noqa: E402
from hllm_jax.recipes import load_run_config  # noqa: E402

# A chip's part of the width is 128, as wide as its registers: for narrower parts the compiler makes an
# all-reduce where a reduce-scatter would do.
TOPOLOGY, CHIPS, GROUP = "v5e:2x4", 8, 4
LAYERS, EMBED, LENGTH = 4, 1024, 512
DEPTHS = (32, 80, 126)

STRATEGIES = {
    "ddp": "{data: 8}",
    "zero1": "{fsdp: 8}",
    "zero2": "{fsdp: 8}",
    "zero3": "{fsdp: 8}",
    "hsdp": f"{{data: {CHIPS // GROUP}, fsdp: {GROUP}}}",
    "tensor": "{tensor: 8}",
}


def compiled(strategy: str, remat: str = "none", layers: int = LAYERS) -> Plan:
    """The step of the small decoder."""
    sizes = f"layers: {layers}, embed: {EMBED}, heads: 8, kv_heads: 8, mlp: 3072, max_length: {LENGTH}"
    overrides = [
        f"model.decoder={{{sizes}}}",
        "model.scan_layers=true",
        "model.dtype=bfloat16",
        f"model.remat={remat}",
        "tokenizer.vocab_size=4096",
        f"train.batch_size={CHIPS}",
        f"train.sequence_length={LENGTH}",
        f"strategy={strategy}",
        f"mesh={STRATEGIES[strategy]}",
    ]
    return plan(load_run_config("configs/pretrain/tiny.yaml", overrides)[1], TOPOLOGY)


def minimum(strategy: str, parameters: int) -> float:
    """Elements that a chip has to send on a ring of many chips."""
    if strategy == "tensor":
        return 2.0 * 4 * LAYERS * CHIPS * LENGTH * EMBED
    if strategy == "hsdp":
        return (3 + 2 / GROUP) * parameters
    return (3 if strategy == "zero3" else 2) * parameters


def measure(strategy: str) -> dict[str, float]:
    """The numbers of one strategy."""
    made = compiled(strategy)
    assert made.flops is not None
    sent = sum(each.ring_elements for each in made.collectives)
    return {
        "flops_ratio": round(made.flops / made.model_flops, 3),
        "peak_mb": round((made.per_device.peak or 0) / 1e6, 1),
        "temporaries_mb": round((made.per_device.temporaries or 0) / 1e6, 1),
        "collectives_ratio": round(sent / minimum(strategy, made.parameters), 3),
        "compile_seconds": round(made.compile_seconds, 1),
    }


def measure_depth(layers: int) -> dict[str, float]:
    """What a depth costs to compile, with full remat."""
    begun = time.process_time()
    made = compiled("zero3", "full", layers)
    assert made.flops is not None
    return {
        "flops_ratio": round(made.flops / made.model_flops, 3),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "compile_seconds": round(made.compile_seconds, 1),
    }


def main() -> None:
    """Measure and print, each number as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    as_json = parser.parse_args().json
    result: dict[str, dict[str, float]] = {}
    try:
        for layers in DEPTHS:
            result[f"{layers} layers"] = measure_depth(layers)
            print(f"{layers:3} layers       {json.dumps(result[f'{layers} layers'])}", file=sys.stderr)
        for strategy in STRATEGIES:
            result[strategy] = measure(strategy)
            print(f"{strategy:16} {json.dumps(result[strategy])}", file=sys.stderr)
    except TopologyError as error:
        sys.exit(str(error))
    if as_json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
