"""Checkpoints that PyTorch wrote, in every layout that LLaMA is handed out in, against `transformers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
# Packages of this environment are imported there, so it must be of the same Python.
SAME_PYTHON = PEERS.parents[1] / "lib" / "python{}.{}".format(*sys.version_info)
LAYOUTS = {"llama2", "llama3", "llama2.c", "old", "book"}

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not SAME_PYTHON.exists(), reason="needs the peers environment: `make peers`"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("torch")
    script = ROOT / "tests" / "interop" / "ask_torch.py"
    packages = (ROOT, sysconfig.get_path("purelib"))
    done = subprocess.run(
        [str(part) for part in (PEERS, script, folder, *packages)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads((folder / "told.json").read_text()), "folder": folder}


def test_every_layout_gives_the_logits_of_transformers(told: dict[str, Any]) -> None:
    assert set(told["apart"]) == LAYOUTS
    assert max(told["apart"].values()) <= 1e-4, told["apart"]
    assert told["tied"] == {name: name not in ("llama2", "llama3") for name in LAYOUTS}
    lengths = {"llama2": 4096, "llama3": 4096, "llama2.c": 64, "old": 64, "book": 512}
    assert told["heads"] == {name: [16, 8, length] for name, length in lengths.items()}


def test_bfloat16_is_read_bit_for_bit(told: dict[str, Any]) -> None:
    assert len(told["bits"]) == 3 + 2 * 9
    assert {tuple(read) for read in told["bits"].values()} == {("bfloat16", 0)}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("code.pth", "it wants to run io.open, which is refused"),
        ("shell.pth", f"it wants to run {os.name}.mkdir, which is refused"),
        ("cut.pth", "is no checkpoint of PyTorch, or is cut off"),
        ("empty.pth", "is no checkpoint of PyTorch, or is cut off"),
        ("text.bin", "is no checkpoint of PyTorch, or is cut off"),
        ("few.pth", "holds no matrix layers.0.attention.wk.weight"),
        ("list.pth", "holds a list, expected a dict of tensors"),
    ],
)
def test_bad_files_are_refused_by_name(told: dict[str, Any], file: str, says: str) -> None:
    said = told["refused"][file]
    assert str(told["folder"] / file) in said
    assert says in said
    assert "weights_only" not in said
    assert not (told["folder"] / "was-run").exists()
