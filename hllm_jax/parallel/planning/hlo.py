"""What a compiled program does, read from its text: collectives, matrix products and memory traffic.

Everything counts as often as it runs: bodies of loops by their trip counts, which for `lax.scan` stand in the
loop's condition. Shapes are those of one device.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)

#: Hand-written kernels of attention -> their products: scores and mixing; of the gradients of keys and values
#: (scores again, that of the probabilities, two results) and of queries (one result).
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}

#: The same of cuDNN, by the end of the name of its calls; the backward pass is one kernel.
CUDNN = {"Softmax": 2, "SoftmaxBackward": 5}

#: Bytes of an element.
SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "token": 0}

_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_MADE_BY = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array: dtype, sizes, and whether it lies in the memory of the chip's core."""

    dtype: str
    shape: tuple[int, ...]
    near: bool = False

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Its size."""
        return self.elements * SIZES.get(self.dtype, 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program.

    Attributes:
        name: of its result.
        arrays: of its result, several if that is a tuple.
        op: the operation.
        operands: names.
        rest: attributes, as they are written.
    """

    name: str
    arrays: tuple[Array, ...]
    op: str
    operands: tuple[str, ...]
    rest: str

    def attribute(self, name: str) -> str | None:
        """`name=value` or `name={value}`, without the braces."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return match[1].strip("{}") if match else None

    @property
    def source(self) -> str:
        """Where in the traced function it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one operation over the same axes of the mesh.

    Attributes:
        op: the operation.
        axis: axes of the mesh, joined by `+`.
        count: how often such an operation runs.
        elements, bytes: of the whole arrays, over all runs: what an all-gather gives, what a reduce-scatter
            takes, what an all-reduce or permute takes.
        ring_elements, ring_bytes: what a device sends on a ring of many devices, where an all-reduce is a
            reduce-scatter and an all-gather: twice.
        recomputed_bytes: the part of `bytes` that is there because the backward pass computes again.
        between_slices: it runs between slices, over the network of the data centre. (What the compiler makes
            of a collective over several slices is one inside of each, and this one for the parts.)
    """

    op: str
    axis: str
    count: int
    elements: int
    bytes: int
    ring_elements: int
    ring_bytes: int
    recomputed_bytes: int
    between_slices: bool = False


class Program:
    """A compiled program.

    Args:
        text: `compiled.as_text()`.
    """

    def __init__(self, text: str) -> None:
        self.entry, self.computations = _read(text)
        self.runs, self.trips = self._count()

    # -- collectives -----------------------------------------------------------------------------------------

    def collectives(self, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
        """All collectives, by operation and axis of a mesh of these sizes (the devices in its order, which is
        slice after slice)."""
        totals: dict[tuple[str, str, bool], np.ndarray] = collections.defaultdict(lambda: np.zeros(4))
        for op, array, runs, again in self._between_slices():
            numbers = np.array([1, array.elements, array.bytes, array.bytes if again else 0])
            totals[op, _axes_between(mesh, slices), True] += runs * numbers
        seen: set[tuple[object, ...]] = set()
        for name, instruction, runs in self._instructions():
            op = instruction.op.removesuffix("-start")
            if op not in COLLECTIVES:
                continue
            if name in self._fused:
                # The fusions that start, continue and end a collective on a TPU all show it.
                shown = (instruction.attribute("channel_id"), instruction.source, instruction.arrays[0].shape)
                if shown in seen:
                    continue
                seen.add(shown)
            axes, ways = _axes(instruction, mesh)
            if axes == "none":  # groups of one device send nothing
                continue
            arrays = _moved(instruction, ways)
            elements = sum(array.elements for array in arrays) * runs
            size = sum(array.bytes for array in arrays) * runs
            again = size if "rematted_computation" in instruction.source else 0
            totals[op, axes, False] += np.array([runs, elements, size, again])
        return [
            Collective(
                op=op,
                axis=axis,
                count=int(count),
                elements=int(elements),
                bytes=int(size),
                ring_elements=int(elements) * (2 if op == "all-reduce" else 1),
                ring_bytes=int(size) * (2 if op == "all-reduce" else 1),
                recomputed_bytes=int(again),
                between_slices=between,
            )
            for (op, axis, between), (count, elements, size, again) in sorted(totals.items())
        ]

    def _between_slices(self) -> Iterator[tuple[str, Array, int, bool]]:
        """Operation, whole array, runs, and whether the backward pass computes it again. They are written as
        a send to the host and a receive from it, whose runtime does the rest; arrays are as they are sent,
        padded to tiles."""
        found: dict[str, tuple[str, Array, int, bool]] = {}
        for _, instruction, runs in self._instructions():
            meeting = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.rest)
            kind = re.search(r'_xla_megascale_transfer_type="([^"]*)"', instruction.rest)
            if instruction.op not in ("send", "recv") or meeting is None or kind is None:
                continue
            array, before = instruction.arrays[0], found.get(meeting[1])
            if before is None or before[1].bytes < array.bytes:
                op = kind[1].lower().replace("_", "-")
                found[meeting[1]] = (op, array, runs, "rematted_computation" in instruction.source)
        yield from found.values()

    # -- arithmetic ------------------------------------------------------------------------------------------

    def flops(self) -> tuple[float, float]:
        """Operations of all matrix products of a device, and those of them that the backward pass computes
        again. Two an accumulated product, as everywhere."""
        total = again = 0.0
        for _, instruction, runs in self._instructions():
            count = runs * self._products(instruction)
            total += count
            if "rematted_computation" in instruction.source:
                again += count
        return total, again

    def _products(self, instruction: Instruction) -> float:
        if instruction.op == "dot":
            return self._dot(instruction)
        if instruction.op == "convolution":
            return self._convolution(instruction)
        if instruction.op == "custom-call":
            match = re.search(r'"flops":"?(\d+)', instruction.rest)
            return float(match[1]) if match else self._attention(instruction)
        return 0.0

    def _attention(self, instruction: Instruction) -> float:
        """Of kernels into which nobody sees: products of `[L, h]` and `[L, L]`, of which a causal mask leaves
        half. All of Splash are causal, those of cuDNN say it."""
        if cudnn := re.search(
            r'custom_call_target="__cudnn\$fmha\w*?(Softmax(?:Backward)?)"', instruction.rest
        ):
            query, key = (self._type(name) for name in instruction.operands[:2])  # [B, L, H, h], [B, S, K, h]
            causal = re.search(r'"mask_type":\s*"\w*CAUSAL', instruction.rest) is not None
            seen = (key.shape[1] + 1) / 2 if causal else key.shape[1]
            return CUDNN[cudnn[1]] * 2.0 * query.elements * seen
        products = next((n for name, n in KERNELS.items() if instruction.name.startswith(name)), 0)
        if not products:
            return 0.0
        # Before the queries stand tables of whole numbers: which blocks are visited.
        operands = [self._type(name) for name in instruction.operands]
        query = next(array for array in operands if array.dtype in ("bf16", "f32"))
        length = query.shape[-2]
        return products * 2.0 * query.elements * (length + 1) / 2

    def _dot(self, instruction: Instruction) -> float:
        left = self._type(instruction.operands[0])
        contracted = instruction.attribute("lhs_contracting_dims") or ""
        summed = math.prod(left.shape[int(dim)] for dim in contracted.split(",") if dim)
        return 2.0 * instruction.arrays[0].elements * summed

    def _convolution(self, instruction: Instruction) -> float:
        """As XLA counts them: pairs of a position and a place of the window that lies in the input."""
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
        assert labels is not None, instruction
        of_input, of_kernel, of_output = labels.groups()
        left, kernel = (self._type(name) for name in instruction.operands[:2])
        out = instruction.arrays[0]
        window = _window(instruction.attribute("window") or "")
        spatial = sorted(letter for letter in of_output if letter.isdigit())
        pairs = 1.0
        for dim, letter in enumerate(spatial):
            pairs *= _valid(
                left.shape[of_input.index(letter)],
                kernel.shape[of_kernel.index(letter)],
                out.shape[of_output.index(letter)],
                **{name: values[dim] for name, values in window.items() if dim < len(values)},
            )
        summed = kernel.shape[of_kernel.index("i")]
        batch = out.shape[of_output.index("b")]
        return 2.0 * batch * out.shape[of_output.index("f")] * summed * pairs

    # -- memory ----------------------------------------------------------------------------------------------

    def traffic(self) -> float:
        """Bytes that go to the memory of the chip and come back, an estimate: every result that is not kept
        near the core is written once and read once. An array whose first axis is as long as the loop it is
        in is a stack of which one entry is meant."""
        total = 0.0
        fused = self._fused
        for name, instructions in self.computations.items():
            if name in fused or name not in self.runs:
                continue
            trips = self.trips.get(name, 1)
            for instruction in instructions:
                if instruction.op in _FREE or instruction.op.endswith("-done"):
                    continue
                for array in instruction.arrays:
                    stacked = trips > 1 and array.shape[:1] == (trips,)
                    if not array.near:
                        total += self.runs[name] * array.bytes / (trips if stacked else 1)
        return 2.0 * total

    # -- walking ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def _fused(self) -> set[str]:
        """Computations whose instructions are not run one by one."""
        names: set[str] = set()
        for instructions in self.computations.values():
            for instruction in instructions:
                if instruction.op in ("fusion", "reduce", "all-reduce", "reduce-scatter", "scatter", "sort"):
                    names.update(_CALLED.findall(instruction.rest))
        return names

    def _instructions(self) -> Iterator[tuple[str, Instruction, int]]:
        for name, runs in self.runs.items():
            for instruction in self.computations[name]:
                yield name, instruction, runs

    @functools.cached_property
    def _types(self) -> dict[str, tuple[Array, ...]]:
        return {i.name: i.arrays for body in self.computations.values() for i in body}

    def _type(self, name: str) -> Array:
        return self._types[name][0]

    def _count(self) -> tuple[dict[str, int], dict[str, int]]:
        """How often each computation runs, and the trip count of the bodies of loops."""
        runs: dict[str, int] = collections.defaultdict(int)
        trips: dict[str, int] = {}

        def visit(name: str, times: int, trip: int) -> None:
            runs[name] += times
            trips[name] = trip
            for instruction in self.computations.get(name, ()):
                if instruction.op == "while":
                    body = instruction.attribute("body")
                    assert body is not None, instruction
                    count = self._trip_count(instruction)
                    visit(body.lstrip("%"), times * count, count)
                    continue
                called = _CALLED.findall(instruction.rest)
                if branches := _BRANCHES.search(instruction.rest):
                    called += [each.strip().lstrip("%") for each in branches[1].split(",")]
                for other in called:
                    if other in self.computations:
                        visit(other, times, trip)

        visit(self.entry, 1, 1)
        return dict(runs), trips

    def _trip_count(self, loop: Instruction) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        condition = (loop.attribute("condition") or "").lstrip("%")
        limits: list[int] = []
        for instruction in self.computations.get(condition, ()):
            if instruction.op == "constant" and instruction.arrays[0].shape == ():
                value = re.match(r"-?\d+", ",".join(instruction.operands))
                if value:
                    limits.append(int(value[0]))
        return max(limits, default=1)


#: Operations that move nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
_FREE |= {"after-all", "partition-id", "replica-id", "opt-barrier", "iota", "broadcast", "copy-start"}


def _read(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (made := _MADE_BY.match(line)):
            current.append(_instruction(made[1], line[made.end() :]))
        elif current and line.strip():  # the attributes of a hand-written kernel go on
            current[-1] = dataclasses.replace(current[-1], rest=current[-1].rest + line)
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    return entry, computations


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    op, _, _ = text.partition("(")
    close = _closing(text, len(op))
    inside, rest = text[len(op) + 1 : close - 1], text[close:]
    if op == "constant":
        operands = (inside,)
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, _arrays(kind), op, operands, rest)


def _closing(text: str, start: int) -> int:
    """One past the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place + 1
    raise ValueError(f"a bracket is not closed: {text[:200]}")


def _arrays(kind: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(1)" in (layout or ""))
        for dtype, sizes, layout in _ARRAY.findall(kind)
    )


def _moved(instruction: Instruction, ways: int) -> list[Array]:
    """The whole arrays of a collective."""
    arrays = list(instruction.arrays)
    if instruction.op.endswith("-start") and instruction.op != "all-reduce-start":
        # (operands …, results …) and, for a permute, two semaphores.
        arrays = [array for array in arrays if array.dtype != "u32" or array.shape]
        arrays = arrays[len(arrays) // 2 :]
    if instruction.op.startswith("reduce-scatter"):
        arrays = [Array(array.dtype, (ways, *array.shape)) for array in arrays]
    return arrays


def _axes(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[str, int]:
    """The axes of the mesh along which the members of a group differ, and how many members it has."""
    groups = _groups(instruction, math.prod(mesh.values()))
    names, sizes = list(mesh), tuple(mesh.values())
    places = np.array(np.unravel_index(groups.reshape(-1), sizes)).reshape(len(sizes), *groups.shape)
    differs = (places != places[:, :, :1]).any(axis=(1, 2))
    joined = "+".join(name for name, different in zip(names, differs, strict=True) if different)
    return joined or "none", groups.shape[1]


def _axes_between(mesh: Mapping[str, int], slices: int) -> str:
    """The axes of the mesh along which devices of the same place in different slices differ."""
    ids = np.arange(math.prod(mesh.values())).reshape(slices, -1)[:, 0]
    places = np.array(np.unravel_index(ids, tuple(mesh.values())))
    differs = (places != places[:, :1]).any(axis=1)
    return "+".join(name for name, different in zip(mesh, differs, strict=True) if different) or "none"


def _groups(instruction: Instruction, devices: int) -> np.ndarray:
    """int `[groups, members]`; pairs for a permute."""
    rest = instruction.rest
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", rest):
        return np.array([[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[0])])
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return np.array(
            [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        )
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, sizes = _numbers(iota[1]), _numbers(iota[2])
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        return (ids.transpose(_numbers(iota[3])) if iota[3] else ids).reshape(shape)
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?\[?([\d,]*)[^{]*)? ?\{([^}]*)\}", rest
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        together = re.findall(r"'([^']+)'", named[3])
        return _by_axes(sizes, together)
    return np.arange(devices)[None, :]


def _by_axes(sizes: Mapping[str, int], together: Sequence[str]) -> np.ndarray:
    ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    names = list(sizes)
    apart = [name for name in names if name not in together]
    order = [names.index(name) for name in (*apart, *together)]
    return ids.transpose(order).reshape(-1, math.prod(sizes[name] for name in together))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _window(text: str) -> dict[str, list[tuple[int, ...]]]:
    """`size=8x8 pad=0_0x7_7 …` -> one tuple a spatial axis."""
    fields = dict(field.split("=") for field in text.split())
    return {
        name: [tuple(int(n) for n in part.split("_")) for part in fields[name].split("x")]
        for name in ("stride", "pad", "lhs_dilate", "rhs_dilate")
        if name in fields
    }


def _valid(
    size: int,
    window: int,
    outputs: int,
    stride: tuple[int, ...] = (1,),
    pad: tuple[int, ...] = (0, 0),
    lhs_dilate: tuple[int, ...] = (1,),
    rhs_dilate: tuple[int, ...] = (1,),
) -> int:
    """Pairs of an output position and a place of the window that meet an entry of the input."""
    places = np.arange(outputs)[:, None] * stride[0] + np.arange(window)[None, :] * rhs_dilate[0] - pad[0]
    spread = (size - 1) * lhs_dilate[0] + 1
    return int(((places >= 0) & (places < spread) & (places % lhs_dilate[0] == 0)).sum())
