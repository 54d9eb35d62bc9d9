"""What strategies cost on 8 TPU chips that are not here: operations, memory and communication, as compiled.

The train step of a small decoder (4 layers, width 512, rows of 512 tokens, one a chip) is compiled for
v5e:2x4 with each strategy. For each: `flops_ratio` and `flops_ratio_remat`, operations of the compiled
program over those of the model, without and with full remat; `temporaries_mb`; and `collectives_ratio`,
elements that a chip sends on a ring (an all-reduce counts twice) over the theoretical minimum: 2Ψ for ddp,
ZeRO-1 and 2, 3Ψ for ZeRO-3 (Rajbhandari et al. 2020, section 7), for hsdp 3Ψ inside of a group and 2Ψ/g
across, for tensor parallelism four all-reduces of the activations a layer (Shoeybi et al. 2019).
`compile_seconds` are those of 32, 80 and 126 layers. It needs libtpu (`make setup EXTRAS=plan`); nothing
runs on a device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from hllm_jax.cli.plan import QUIET

os.environ["JAX_PLATFORMS"] = "cpu"
for name, value in QUIET.items():
    os.environ.setdefault(name, value)

from hllm_jax.parallel.planning.topology import TopologyError  # noqa: E402 (after the environment is set)
from hllm_jax.planning import Plan, plan  # noqa: E402
from hllm_jax.recipes import load_run_config  # noqa: E402

TOPOLOGY, CHIPS, GROUP = "v5e:2x4", 8, 4
LAYERS, EMBED, LENGTH = 4, 512, 512
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
    sizes = f"layers: {layers}, embed: {EMBED}, heads: 8, kv_heads: 8, mlp: 1536, max_length: {LENGTH}"
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
    made, again = compiled(strategy), compiled(strategy, "full")
    assert made.flops is not None
    assert again.flops is not None
    sent = sum(each.ring_elements for each in made.collectives)
    found = {
        "flops_ratio": round(made.flops / made.model_flops, 3),
        "flops_ratio_remat": round(again.flops / again.model_flops, 3),
        "temporaries_mb": round((made.per_device.temporaries or 0) / 1e6, 1),
        "temporaries_mb_remat": round((again.per_device.temporaries or 0) / 1e6, 1),
        "collectives_ratio": round(sent / minimum(strategy, made.parameters), 3),
    }
    print(f"{strategy:16} {json.dumps(found)}", file=sys.stderr)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    as_json = parser.parse_args().json
    try:
        result: dict[str, object] = {strategy: measure(strategy) for strategy in STRATEGIES}
    except TopologyError as error:
        sys.exit(str(error))
    result["compile_seconds"] = {
        str(layers): round(compiled("zero3", "full", layers).compile_seconds, 1) for layers in DEPTHS
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{'compile_seconds':16} {json.dumps(result['compile_seconds'])}")


if __name__ == "__main__":
    main()
