"""The communication between devices in a compiled program, read from its text.

Every operation is counted in every iteration of a loop. Each of n devices receives (n - 1) / n of the result in an
all-gather and in an all-to-all, n - 1 times the result in a reduce-scatter, and 2 (n - 1) / n of the result in an
all-reduce. Devices are numbered in the order of the mesh.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from melody_jax.hlo import operations

ELEMENT_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s64": 8,
    "f64": 8,
}
"""Bytes of the element types whose size is not 4."""
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "recv")
"""Kinds of communication between devices; "recv" is communication from another slice."""


class Collective(NamedTuple):
    """One operation of the program."""

    kind: str
    """One of `KINDS`."""
    times: int
    """How often a step runs it."""
    received: float
    """Bytes that a device receives each time."""
    devices: tuple[int, ...]
    """The devices of one of its groups; of a collective-permute a device and the one it sends to; of "recv" none."""


def read_collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled module, from its text.

    Raises:
        ValueError: a collective's replica groups cannot be read.
    """
    return [
        _collective(operation.line, kind, operation.times)
        for operation in operations(hlo)
        for kind in KINDS
        if re.search(rf" {kind}(-start)?\(", operation.line)
    ]


def total_by_kind(collectives: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """Kind -> (number of collectives in a step, bytes that a device receives)."""
    totals: dict[str, tuple[int, float]] = {}
    for one in collectives:
        count, size = totals.get(one.kind, (0, 0.0))
        totals[one.kind] = (count + one.times, size + one.times * one.received)
    return totals


def busiest_axis(collectives: Iterable[Collective], positions: Sequence[Sequence[int]]) -> float:
    """Bytes that a device receives along the busiest axis of the torus.

    A collective splits its traffic equally over the axes along which the devices of its group differ. A collective
    within a single row of the torus therefore leaves the links of the other axes idle. Communication between slices is
    not counted.

    positions: the coordinates of each device in its slice, in the order of the mesh.
    """
    sizes = np.zeros(len(positions[0]))
    for one in collectives:
        group = np.asarray([positions[device] for device in one.devices])
        differ = (group != group[:1]).any(axis=0) if len(group) else np.zeros(len(sizes), bool)
        sizes += differ * one.times * one.received / max(1, differ.sum())
    return float(sizes.max())


def _collective(line: str, kind: str, times: int) -> Collective:
    size = _result_bytes(line, kind)
    if kind == "recv":
        return Collective(kind, times, size, ())
    if kind == "collective-permute":
        pair = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
        return Collective(kind, times, size, (int(pair[1]), int(pair[2])) if pair else ())
    devices = _group(line)
    n = len(devices)
    share = {"reduce-scatter": n - 1.0, "all-reduce": 2 * (n - 1) / n}.get(kind, (n - 1) / n)
    return Collective(kind, times, share * size, devices)


def _result_bytes(line: str, kind: str) -> float:
    """Bytes of an operation's result. An asynchronous start lists its operands too: then the largest
    array."""
    result = line.split("=", 1)[1].split(f" {kind}")[0]
    sizes = [
        ELEMENT_BYTES.get(element, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for element, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", result)
    ]
    started = (f"{kind}-start(" in line or kind == "recv") and len(sizes) > 1
    return float(max(sizes) if started else sum(sizes))


def _group(line: str) -> tuple[int, ...]:
    """The devices of the first group of a collective, in any of the compiler's three notations."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return tuple(int(number) for number in listed[1].split(","))
    if grid := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+?),? ", f"{line} "):
        return tuple(_numbers(grid[3]).reshape(int(grid[1]), int(grid[2]))[0].tolist())
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? *\{([^}]*)\}", line):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        devices = _numbers(named[2] or f"[{math.prod(sizes.values())}]").reshape(*sizes.values())
        parts = {axis: (before, size) for axis, before, size in re.findall(_PART, named[3])}
        for number, (axis, full) in enumerate(sizes.items()):
            before, size = parts.get(axis, ("", "1"))
            after = full // (int(before or 1) * int(size or full))
            devices = devices.take(range(0, after * int(size or full), after), axis=number)
        return tuple(devices.reshape(-1).tolist())
    raise ValueError(f"no replica groups in: {line.strip()[:200]}")


_PART = r"'(\w+)'(?::\((\d+)\)(\d+))?"
"""An axis of a mesh, or a part of it: its name, the size of the parts before it, and its size."""


def _numbers(text: str) -> np.ndarray:
    """The devices in the order of "[4,2]T(1,0)": counted along a grid, and then transposed."""
    dims, _, axes = text.partition("T")
    grid = np.arange(math.prod(_integers(dims))).reshape(_integers(dims))
    return (grid.transpose(_integers(axes)) if axes else grid).reshape(-1)


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
