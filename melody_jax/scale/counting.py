"""What a step needs, counted where it is written: FLOPs in the traced program, collectives in the compiled one.

XLA's own count takes the body of a loop once, however often it runs.
"""

import math
import re
from collections.abc import Iterator
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
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions in a (closed) jaxpr; a loop counts as often as it runs.

    Loops without a known number of rounds count once, of branches the costliest.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval, params["dimension_numbers"]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[numbers.rhs_spec[0]]
    inner = [matmul_flops(part) for part in _inner(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part


def collectives(hlo: str) -> dict[str, tuple[int, float]]:
    """kind -> (how many, bytes that a device receives) of a compiled module's text, each round of a loop."""
    bodies = _computations(hlo)
    found: dict[str, tuple[int, float]] = {}

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            for kind in COLLECTIVES:
                if re.search(rf" {kind}(-start)?\(", line):
                    count, size = found.get(kind, (0, 0.0))
                    found[kind] = (count + times, size + times * _result_bytes(line, kind))
            if loop := re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                visit(loop[2], times * _rounds(line, bodies.get(loop[1], [])))
            for called in re.findall(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.-]+)", line):
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
    started = f"{kind}-start(" in line and len(sizes) > 1
    return float(max(sizes) if started else sum(sizes))
