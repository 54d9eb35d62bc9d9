"""The most memory that a peer has held."""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory() -> int:
    """Bytes resident at most so far; `getrusage` would tell that of the process which started this one."""
    (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) * 1024
