"""Packing items of given sizes into rows, on the histogram of sizes: millions cost no more than few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def pack_sizes(histogram: np.ndarray, length: int) -> list[tuple[tuple[int, ...], int]]:
    """Pack items of sizes 1..length, given how many there are of each, into rows of `length`.

    Longest first; each into the row with the least room that still fits it.

    Returns:
        `(sizes in the row, number of such rows)` pairs.
    """
    room: dict[int, list[tuple[tuple[int, ...], int]]] = {}

    def put(sizes: tuple[int, ...], left: int, rows: int) -> None:
        if rows:
            room.setdefault(left, []).append((sizes, rows))

    for size in range(length, 0, -1):
        count = int(histogram[size])
        for left in range(size, length):
            if count == 0:
                break
            waiting = room.pop(left, [])
            while waiting and count:
                sizes, rows = waiting.pop()
                each = left // size  # copies that fit into one such row
                full = min(rows, count // each)
                put(sizes + (size,) * each, left - each * size, full)
                rows, count = rows - full, count - full * each
                if rows and count:  # fewer copies remain than fit into one row
                    put(sizes + (size,) * count, left - count * size, 1)
                    rows, count = rows - 1, 0
                put(sizes, left, rows)
            if waiting:
                room.setdefault(left, []).extend(waiting)
        each = length // size
        put((size,) * each, length - each * size, count // each)
        put((size,) * (count % each), length - (count % each) * size, int(count % each > 0))
    return [group for left in sorted(room) for group in room[left]]


def place_items(
    groups: Sequence[tuple[tuple[int, ...], int]], sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give every slot of every row an item, items numbered by size (stable).

    Returns:
        int64 [items], the item in each slot, row after row; int64 [rows + 1], the first slot of each row.
    """
    histogram = np.bincount(sizes)
    next_item = np.cumsum(histogram) - histogram
    widths = np.repeat([len(group) for group, _ in groups], [rows for _, rows in groups])
    row_starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    slots = np.empty(len(sizes), np.int64)
    row = 0
    for group, rows in groups:
        starts = row_starts[row : row + rows]
        for slot, size in enumerate(group):
            slots[starts + slot] = np.arange(next_item[size], next_item[size] + rows)
            next_item[size] += rows
        row += rows
    return slots, row_starts
