"""Where each parameter, its gradient and its moments lie: a table, from names and sizes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hllm_jax.parallel.rules import Rules, Table, mesh_axes

KINDS = ("parameters", "gradients", "optimizer")


def draw(
    shapes: Mapping[str, Sequence[int]],
    axes: Mapping[str, Sequence[str | None]],
    rules: Rules,
    mesh: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    """The layout of every parameter.

    Args:
        shapes: path -> sizes.
        axes: path -> names of its axes.
        rules: of the strategy.
        mesh: sizes of its axes.

    Returns:
        Path -> `shape`, `axes`, and for `parameters`, `gradients` and `optimizer` the mesh axes that split
        each axis (joined by `+`, "" for none) and under `local` the shape that a device holds.
    """
    table: dict[str, dict[str, Any]] = {}
    for path, shape in shapes.items():
        row: dict[str, Any] = {"shape": list(shape), "axes": list(axes[path]), "local": {}}
        for kind in KINDS:
            split = _split(axes[path], getattr(rules, kind), mesh)
            row[kind] = ["+".join(over) for over in split]
            row["local"][kind] = [
                size // math.prod(mesh[axis] for axis in over)
                for size, over in zip(shape, split, strict=True)
            ]
        table[path] = row
    return table


def _split(names: Sequence[str | None], table: Table, mesh: Mapping[str, int]) -> list[tuple[str, ...]]:
    return [tuple(axis for axis in over if mesh[axis] > 1) for over in mesh_axes(names, table)]


def lines(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table for people: `embed:fsdp` is an axis and what splits it."""
    rows = [("parameter", "shape", "a device holds", "split", "gradient", "optimizer")]
    for path, row in table.items():
        kinds = {kind: _words(row["axes"], row[kind]) for kind in KINDS}
        same = {kind: "as it" if kinds[kind] == kinds["parameters"] else kinds[kind] for kind in KINDS[1:]}
        local = "x".join(map(str, row["local"]["parameters"]))
        shape = "x".join(map(str, row["shape"]))
        rows.append((path, shape, local, kinds["parameters"], same["gradients"], same["optimizer"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _words(names: Sequence[str | None], split: Sequence[str]) -> str:
    parts = [f"{name}:{over}" for name, over in zip(names, split, strict=True) if over]
    return " ".join(parts) or "whole"
