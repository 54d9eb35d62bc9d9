"""Reading ahead: Grain threads prepare the next batches while the device works on this one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hllm_jax.data.batches import Batches
    from hllm_jax.data.transforms.piece import Batch


def loader(
    batches: Batches,
    start: int = 0,
    stop: int | None = None,
    local: slice | None = None,
    prefetch: int = 4,
    threads: int = 2,
) -> Iterator[Batch]:
    """Iterate over batches `start`, `start + 1`, … `stop - 1`, in order.

    The position is `start` plus how many were taken: nothing else needs to be saved to resume.

    Args:
        batches: global batches.
        start: the first step.
        stop: the step after the last; None: the end of the epochs, or never.
        local: the rows of each global batch that this host reads, e.g. `slice(16, 32)`; None: all.
        prefetch: batches held ready.
        threads: Grain threads that read.
    """
    import grain

    rows = range(batches.batch_size)[local if local is not None else slice(None)]
    if rows.step != 1:
        raise ValueError(f"a host reads neighbouring rows, not {local}")
    end = stop if stop is not None else batches.steps if batches.steps is not None else sys.maxsize
    numbers = grain.MapDataset.range(start, end)
    # A batch may be an all-padding one, never None, so no element is filtered out on the way.
    reading = numbers.map(lambda n: batches.rows(n, rows.start, rows.stop))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(reading.to_iter_dataset(options))
