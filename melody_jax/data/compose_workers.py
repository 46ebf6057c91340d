"""Worker processes of `melody compose`: they make groups of pieces in parallel and count finished pieces."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from melody_jax.errors import UserError

T = TypeVar("T")

# One thread per worker: matrix products of NumPy round differently for other numbers of threads.
_ONE_THREAD: dict[str, str] = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


class Stopped(Exception):
    """The main process wants no more pieces."""


class _Shared:
    """What a worker process shares with the main process."""

    count: Any = None
    stop: Any = None


def run_groups(
    make_group: Callable[[int], T], groups: Sequence[int], workers: int, advance: Callable[[int], object]
) -> Iterator[tuple[int, T]]:
    """Yields (group, result) of the picklable `make_group` as workers finish.

    `workers` is the number of processes, 0 for one per CPU; `advance` is called with numbers of newly finished pieces.

    Raises:
        UserError: the operating system killed a worker.
    """
    if not groups:
        return
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0)
    stop = context.Event()
    workers = min(len(groups), workers or os.cpu_count() or 1)
    with (
        _environment(_ONE_THREAD),
        ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(count, stop)) as pool,
    ):
        pending: set[Future] = {pool.submit(partial(_numbered, make_group), group) for group in groups}
        reported = 0
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                finished = count.value
                advance(finished - reported)
                reported = finished
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise UserError("a worker was killed (out of memory?); run again with fewer --workers") from error
        finally:
            stop.set()
            for future in pending:
                future.cancel()


def check_running() -> None:
    """Raises `Stopped` in a worker once the main process has ended its loop."""
    if _Shared.stop.is_set():
        raise Stopped


def count_piece() -> None:
    """Tells the main process that one more piece is finished."""
    with _Shared.count.get_lock():
        _Shared.count.value += 1


def _numbered(make_group: Callable[[int], T], group: int) -> tuple[int, T]:
    return group, make_group(group)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that start inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _start_worker(count: Any, stop: Any) -> None:
    _Shared.count = count
    _Shared.stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A main process that is killed cannot stop its workers; they would wait for work forever.
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
