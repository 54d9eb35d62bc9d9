"""One of two stages: `python pipeline_process.py PORT PROCESS FILE` trains with the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from hllm_jax.parallel import distributed
from hllm_jax.parallel.config import DistributedConfig
from hllm_jax.training.loop import local_part
from tests.parallel.test_pipeline import batch, parts


def main() -> None:
    port, process, file = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    distributed.start(DistributedConfig(coordinator=f"localhost:{port}", processes=2, process=int(process)))
    layout, step = parts({"stage": 2, "data": 2}, {"microbatches": 4})
    # A stage is a process: what is sent between the stages goes over the network.
    own = {device.process_index for device in layout.mesh.devices[int(process)].flat}
    assert own == {int(process)}, own
    state, losses = layout.init(1), []
    for n in range(3):
        state, metrics = step(state, layout.put(local_part(layout, batch(n))))
        losses.append(float(metrics["loss"]))
    Path(file).write_text(json.dumps(losses), "utf-8")


if __name__ == "__main__":
    main()
