"""A training process for the tests of sudden death: `python killable.py FOLDER HOW STEP [key=value …]`.

HOW says what happens at update STEP: `never`; `step` is a SIGKILL right after it was sent; `arrays` one in
the middle of its save, when Orbax has only begun; `commit` one after the arrays are written and before the
manifest is; `full` lets every file end at 4 kB from there on, as a full disk would.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hllm_jax.testing.training import ToyBatches, toy_config, toy_train
from hllm_jax.training import checkpoints


def die(*args: Any, **kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class Batches(ToyBatches):
    """Something happens when the batch of update `at` + 1 is read."""

    how, at = "never", 0

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        if n == self.at and self.how == "step":
            die()
        return super().__getitem__(n)


def main() -> None:
    folder, how, at, *overrides = sys.argv[1:]
    batches = Batches()
    batches.how, batches.at = how, int(at)
    save, commit = checkpoints.Checkpoints.save, checkpoints.commit

    def save_or_die(self: Any, state: Any, facts: Any) -> bool:
        if int(state.step) == int(at) and how == "arrays":
            checkpoints.Checkpoints._finish = die  # type: ignore[method-assign]
        if int(state.step) == int(at) and how == "full":
            self.wait()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return save(self, state, facts)

    def commit_or_die(path: Path, manifest: Any) -> None:
        if manifest.step == int(at) and how == "commit":
            die()
        commit(path, manifest)

    checkpoints.Checkpoints.save = save_or_die  # type: ignore[method-assign]
    checkpoints.commit = commit_or_die  # type: ignore[assignment]
    toy_train(toy_config(Path(folder), *overrides), batches)


if __name__ == "__main__":
    main()
