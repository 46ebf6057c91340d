"""Sampling computes in 32 bits, whatever `jax_enable_x64` says: seeds give the same clips with and without it."""

import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def in_32_bits(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function: arrays without a stated type have 32 bits inside."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return wrapped


def each_in_32_bits(parts: Iterator[T]) -> Iterator[T]:
    """The elements of an iterator, each made as `in_32_bits` does."""
    while True:
        with jax.enable_x64(False):
            try:
                part = next(parts)
            except StopIteration:
                return
        yield part
