"""Counts the FLOPs of a traced program.

XLA's own count includes the body of a loop only once, however often it runs.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


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
            each = second.size / second.shape[numbers.rhs_spec[0]] / math.prod(params["lhs_dilation"])
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
