"""The number of threads of NumPy's matrix products."""

from contextlib import AbstractContextManager
from typing import Any


def single_blas_thread() -> AbstractContextManager[Any]:
    """A context in which matrix products use one thread: for many small matrices, more threads are slower."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")
