"""Reads the text of a compiled program: every operation, how often a step runs it, and the compiler's cycle counts."""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Operation(NamedTuple):
    """One operation of a program."""

    line: str
    """Its line of the text."""
    times: int
    """How often a step runs it."""
    fused: bool
    """Whether it is a part of another operation, or of a computation that another one starts."""


class Cycles(NamedTuple):
    """Cycles of a step by the TPU compiler's estimate."""

    products: int
    """In operations that contain a matrix product or a convolution, with what is fused to it."""
    others: int
    """In all other operations, which keep the vector unit or the memory busy."""


def operations(hlo: str) -> Iterator[Operation]:
    """The operations of a compiled module, from its text.

    Those in the body of a loop count once per iteration. Of a conditional, all branches count: in training, what most
    steps skip is an empty branch.
    """
    bodies = _computations(hlo)

    def visit(name: str, times: int, fused: bool) -> Iterator[Operation]:
        for line in bodies.get(name, ()):
            yield Operation(line, times, fused)
            if loop := re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                yield from visit(loop[2], times * _iterations(line, bodies.get(loop[1], [])), fused)
            for kind, called in re.findall(_CALLED, line):
                yield from visit(called, times, fused or kind == "calls")
            if branches := re.search(r"branch_computations=\{([^}]*)\}", line):
                for branch in re.findall(r"[\w.-]+", branches[1]):
                    yield from visit(branch, times, fused)

    entry = re.search(r"^ENTRY %?([\w.-]+)", hlo, re.MULTILINE)
    return visit(entry[1], 1, False) if entry else iter(())


_CALLED = r"(to_apply|calls|true_computation|false_computation)=%?([\w.-]+)"


def estimated_cycles(hlo: str) -> Cycles:
    """The compiler's estimate for a step, from the text of a module compiled for a TPU; 0 where it gives none.

    It covers what a core computes and moves, not the communication between chips, and lets nothing overlap.
    """
    products = 0
    others = 0
    cost = 0
    for operation in operations(hlo):
        if not operation.fused:  # those that are fused to it come next
            others += cost
            cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.line)
            cost = operation.times * int(cycles[1]) if cycles else 0
        if re.search(r" (convolution|dot)\(", operation.line):
            products += cost
            cost = 0
    return Cycles(products, others + cost)


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
