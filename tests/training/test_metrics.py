"""What a run measures about itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from hllm_jax.training.metrics import (
    PEAKS,
    MetricsFile,
    measured_peak,
    peak_flops,
    peak_memory,
    peak_resident,
    read_lines,
)


def test_the_measured_peak_is_a_speed() -> None:
    assert 1e8 < measured_peak(256, 0.02) < 1e14


def test_peak_of_a_cpu_is_measured_once() -> None:
    assert peak_flops() == peak_flops()


def test_known_devices_have_plausible_peaks() -> None:
    assert PEAKS["NVIDIA H100"] == 989e12
    assert all(5e13 < peak < 5e15 for peak in PEAKS.values())


def test_memory_is_counted_in_bytes() -> None:
    assert (peak_memory() or 0) > 50e6


def test_memory_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    large = np.ones(2**26)
    program = "from hllm_jax.training.metrics import peak_resident; print(peak_resident())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < large.nbytes / 2 < (peak_resident() or 0)


def test_a_text_with_signs_that_end_lines_elsewhere_stays_a_line(tmp_path: Path) -> None:
    """U+2028 and U+0085 are no ends of lines in JSON, though Python's `splitlines` takes them for such."""
    line = {"step": 1, "text": "甲\u2028乙\u0085丙"}
    for resumed in (-1, 1):
        file = MetricsFile(tmp_path / "samples.jsonl", resumed)
        if resumed < 0:
            file.write(line)
        file.close()
    assert read_lines(tmp_path / "samples.jsonl") == [line]
