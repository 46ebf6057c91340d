"""What a step needs, counted where it is written: FLOPs in the traced program, collectives in the compiled one.

XLA's own count takes the body of a loop once, however often it runs.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

SIZES = {
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
"""Bytes of the element types that have not four."""
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "recv")
"""Kinds of operations by which devices hear of each other; "recv" is what comes from another slice."""


def matmul_cost(jaxpr: Any) -> tuple[float, float]:
    """FLOPs, and bytes read and written, of the matrix products and convolutions in a (closed) jaxpr.

    A loop counts as often as it runs, one without a known number of rounds once, of branches the costliest; what
    `shard_map` gives to each device counts for all of them.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return _total(_equation(equation) for equation in jaxpr.eqns)


def _total(costs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    flops, sizes = zip((0.0, 0.0), *costs, strict=True)
    return sum(flops), sum(sizes)


def _equation(equation: Any) -> tuple[float, float]:
    name, params = equation.primitive.name, equation.params
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
    """kind -> (how many, bytes that a device receives) of a compiled module's text, each round of a loop.

    Of n devices: in an all-gather and an all-to-all they receive (n - 1) / n of the result, in a reduce-scatter n - 1
    times the result, in an all-reduce both of these one after the other, 2 (n - 1) / n of it.
    """
    bodies = _computations(hlo)
    found: dict[str, tuple[int, float]] = {}

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            for kind in COLLECTIVES:
                if re.search(rf" {kind}(-start)?\(", line):
                    count, size = found.get(kind, (0, 0.0))
                    found[kind] = (count + times, size + times * _received_bytes(line, kind))
            if loop := re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                visit(loop[2], times * _rounds(line, bodies.get(loop[1], [])))
            for called in re.findall(
                r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.-]+)", line
            ):
                visit(called, times)

    entry = re.search(r"^ENTRY %?([\w.-]+)", hlo, re.MULTILINE)
    if entry:
        visit(entry[1], 1)
    return found


def _rounds(line: str, condition: list[str]) -> int:
    """How often a loop runs: as the compiler says, or as its condition compares a counter from 0 with a constant."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    bounds = [int(n) for text in condition for n in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", text)]
    return max(bounds) if bounds and any("direction=LT" in text for text in condition) else 1


def _computations(hlo: str) -> dict[str, list[str]]:
    """Name -> lines of every computation of the module."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            current = found.setdefault(head[1], [])
        elif line.startswith("  "):
            current.append(line)
    return found


def _result_bytes(line: str, kind: str) -> float:
    """Bytes of an operation's result; of an asynchronous start, which lists operands too, the larger half."""
    result = line.split("=", 1)[1].split(f" {kind}")[0]
    sizes = [
        SIZES.get(kind_, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind_, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", result)
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
    """How many devices take part in one group of a collective, in any of the compiler's three notations."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(grid[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(
            int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        )
    raise ValueError(f"no replica groups that can be read in: {line.strip()[:200]}")
