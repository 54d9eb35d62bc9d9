"""The states of a device are those of the paper that they come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

CODE = """
import json, sys
sys.path.insert(0, "scripts")
import zero_figure1
print(json.dumps([zero_figure1.states(), zero_figure1.PAPER]))
"""


def test_zero_figure_1() -> None:
    """Rajbhandari et al. 2020: 120, 31.4, 16.6 and 1.9 GB."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    found, paper = json.loads(done.stdout.splitlines()[-1])
    assert list(paper.values()) == [120.0, 31.4, 16.6, 1.9]
    for strategy, sizes in found.items():
        assert abs(sum(sizes.values()) / paper[strategy] - 1) < 0.03, strategy
    assert abs(found["zero2"]["grads"] * 64 - found["ddp"]["grads"]) < 0.1
