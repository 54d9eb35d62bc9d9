"""Launchers say what they would do; nobody here has a TPU slice or SLURM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
SLICE = {
    "TPU_NAME": "mine",
    "ZONE": "us-east5-a",
    "TYPE": "v5p-32",
    "VERSION": "v2-alpha-tpuv5",
    "BUCKET": "gs://b",
}


def tpu_vm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {**{k: v for k, v in os.environ.items() if k not in SLICE}, **environment}
    command = ["bash", str(SCRIPTS / "tpu_vm.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=own, cwd=SCRIPTS.parent, check=False)


def test_every_step_is_a_command_for_all_workers() -> None:
    done = tpu_vm(
        "--dry-run", "supervise", "configs/pretrain/llama2-7b.yaml", "mesh.fsdp=16", **SLICE, SPOT="1"
    )
    assert done.returncode == 0, done.stderr
    create, archive, send, install, mount, train = done.stdout.splitlines()
    assert create.startswith("gcloud compute tpus tpu-vm create mine --accelerator-type v5p-32")
    assert "--spot" in create
    assert archive.startswith("git archive")
    for line in (send, install, mount, train):
        assert "--worker=all" in line
        assert line.rstrip().endswith("--zone us-east5-a")
    assert "gcsfuse" in mount
    for said in ("llama2-7b.yaml", "mesh.fsdp=16", "run.platform=tpu", "run.dir="):
        assert said in train.replace("\\", "")


def test_what_is_missing_is_named() -> None:
    without = {name: value for name, value in SLICE.items() if name != "ZONE"}
    done = tpu_vm("--dry-run", "create", **without)
    assert (done.returncode, done.stdout) == (2, "")
    assert "set ZONE" in done.stderr
    assert tpu_vm("fly").returncode == 2


def test_the_batch_script_is_one() -> None:
    script = SCRIPTS / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
