"""One of several training processes: `python process.py FOLDER DEVICES [key=value …]`, with the toy model."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax
import numpy as np

from hllm_jax.parallel import distributed
from hllm_jax.testing.training import ToyBatches, toy_config, toy_train


class Slow(ToyBatches):
    """Reads a batch in a tenth of a second where many are asked for: there is time to be killed."""

    slow = False

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        if self.slow:
            time.sleep(0.1)
        return super().__getitem__(n)


def main() -> None:
    folder, devices, *overrides = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    settings = toy_config(Path(folder), *overrides)
    distributed.start(settings.distributed)
    batches = Slow(16, 16)
    batches.slow = (settings.train.steps or 0) > 20
    toy_train(settings, batches, devices=int(devices) * distributed.processes())


if __name__ == "__main__":
    main()
