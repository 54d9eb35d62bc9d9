"""What compilers say of programs that are too large."""

from __future__ import annotations

import pytest

from hllm_jax.parallel.planning.refusal import read_refusal

GIB = 1024**3

# Recorded: libtpu 0.0.42.1, zero-figure1.yaml strategy=ddp model.remat=none, 4 layers, for v5e:2x4.
RECORDED = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (30.58G) "
    "exceeds available HBM (15.75G)."
)
# The form of the allocator, and that of the compiler for GPUs.
ALLOCATOR = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 27.62G of 15.75G hbm. Exceeded hbm capacity by 11.87G.\n\nTotal hbm usage >= 28.12G:\n    ..."
)
GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123456789 bytes."


@pytest.mark.parametrize(
    ("message", "used", "limit"),
    [
        (RECORDED, int(30.58 * GIB), int(15.75 * GIB)),
        (ALLOCATOR, int(27.62 * GIB), int(15.75 * GIB)),
        (GPU, 123456789, None),
        ("RESOURCE_EXHAUSTED: something else", None, None),
    ],
)
def test_used_and_limit_are_read(message: str, used: int | None, limit: int | None) -> None:
    refusal = read_refusal(message)
    assert refusal is not None
    assert (refusal.used, refusal.limit) == (used, limit)
    assert refusal.words.startswith("RESOURCE_EXHAUSTED")
    assert "\n" not in refusal.words


def test_other_errors_are_none() -> None:
    assert read_refusal("INVALID_ARGUMENT: No such compile option: 'x'") is None
