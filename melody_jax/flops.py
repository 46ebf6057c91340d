"""Counts of a program: FLOPs in the traced program, collectives in the compiled one.

XLA's own count includes the body of a loop only once, however often it runs.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

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
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "recv")
"""Kinds of communication between devices; "recv" is communication from another slice."""


def matmul_cost(jaxpr: Any) -> tuple[float, float]:
    """FLOPs, and bytes read and written, of the matrix products and convolutions in a (closed) jaxpr.

    The body of a loop counts once per iteration, or once if the number of iterations is unknown. Of several
    branches the most expensive one counts. The body of a `shard_map` counts for all devices.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return _total(_equation(equation) for equation in jaxpr.eqns)


def _total(costs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    flops, sizes = zip((0.0, 0.0), *costs, strict=True)
    return sum(flops), sum(sizes)


def _equation(equation: Any) -> tuple[float, float]:
    name = equation.primitive.name
    params = equation.params
    if name in ("dot_general", "conv_general_dilated"):
        first, second, out = (value.aval for value in (*equation.invars, *equation.outvars))
        numbers = params["dimension_numbers"]
        if name == "dot_general":
            each = math.prod(first.shape[i] for i in numbers[0][0])
        else:
            each = second.size / second.shape[numbers.rhs_spec[0]]
        return 2.0 * out.size * each, float(sum(x.size * x.dtype.itemsize for x in (first, second, out)))
    inner = [matmul_cost(part) for part in _inner(params)]
    if name == "cond":
        return max(inner, default=(0.0, 0.0))
    flops, size = _total(inner)
    times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
    return flops * times, size * times


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part


def collectives(hlo: str) -> dict[str, tuple[int, float]]:
    """Collectives in the text of a compiled module, counted in every iteration of a loop.

    Each of n devices receives (n - 1) / n of the result in an all-gather and in an all-to-all, n - 1 times
    the result in a reduce-scatter, and 2 (n - 1) / n of the result in an all-reduce.

    Returns:
        Kind -> (number of collectives, bytes that a device receives).

    Raises:
        ValueError: a collective's replica groups cannot be read.
    """
    bodies = _computations(hlo)
    totals: dict[str, tuple[int, float]] = {}

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            for kind in COLLECTIVES:
                if re.search(rf" {kind}(-start)?\(", line):
                    count, size = totals.get(kind, (0, 0.0))
                    totals[kind] = (count + times, size + times * _received_bytes(line, kind))
            if loop := re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                visit(loop[2], times * _iterations(line, bodies.get(loop[1], [])))
            for called in re.findall(
                r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.-]+)", line
            ):
                visit(called, times)

    entry = re.search(r"^ENTRY %?([\w.-]+)", hlo, re.MULTILINE)
    if entry:
        visit(entry[1], 1)
    return totals


def _iterations(line: str, condition: list[str]) -> int:
    """Iterations of a loop: the compiler's trip count, or the constant that its counter is compared with."""
    if trip_count := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(trip_count[1])
    bounds = [int(n) for text in condition for n in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", text)]
    return max(bounds) if bounds and any("direction=LT" in text for text in condition) else 1


def _computations(hlo: str) -> dict[str, list[str]]:
    """Name -> lines of every computation of the module."""
    computations: dict[str, list[str]] = {}
    current: list[str] = []
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            current = computations.setdefault(head[1], [])
        elif line.startswith("  "):
            current.append(line)
    return computations


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


def _received_bytes(line: str, kind: str) -> float:
    size = _result_bytes(line, kind)
    if kind in ("collective-permute", "recv"):
        return size
    n = _group_size(line)
    if kind == "reduce-scatter":
        return (n - 1) * size
    return (2 if kind == "all-reduce" else 1) * (n - 1) / n * size


def _group_size(line: str) -> int:
    """Number of devices in one group of a collective, in any of the compiler's three notations."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(grid[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(
            int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        )
    raise ValueError(f"no replica groups in: {line.strip()[:200]}")
