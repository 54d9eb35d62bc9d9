"""The wheel: it carries recipes and configurations, and `hllm` works from it without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*build, "--wheel-dir", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def hllm(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "hllm_jax", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(installed: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "hllm_jax", "train", "configs"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    shipped = [name if name.startswith("hllm_jax/") else f"hllm_jax/_shipped/{name}" for name in tracked]
    assert [name for name in shipped if not (installed / name).is_file()] == []
    assert len(shipped) >= 100


@pytest.mark.slow
def test_recipes_and_configs_work_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    listed = hllm(installed, "recipes", cwd=tmp_path)
    assert "pretrain" in listed.stdout
    assert "configs/pretrain/tiny.yaml" in listed.stdout
    validated = hllm(installed, "validate", "configs/pretrain/tiny.yaml", "train.steps=3", cwd=tmp_path)
    assert validated.returncode == 0, validated.stderr
    assert hllm(installed, "recipes", "copy", "sft", "mine", cwd=tmp_path).returncode == 0
    assert hllm(installed, "validate", "mine/tiny.yaml", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_benchmarks_ask_for_a_checkout(installed: Path, tmp_path: Path) -> None:
    done = hllm(installed, "bench", cwd=tmp_path)
    assert done.returncode == 2
    assert "clone it first" in done.stderr
