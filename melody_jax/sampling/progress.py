"""Progress over the windows of clips: a bar on a terminal, or calls of a function."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
Progress = bool | Callable[[int, int], None]
"""True: a bar on a terminal. A function: called with the windows that are done and those of all clips of the batch,
before the first window and after each; what it raises ends the work."""


def count_windows(windows: Iterable[T], total: int | None, progress: Progress) -> Iterator[T]:
    """The windows, with their progress; `total` is None for an endless stream.

    The bar indicates when a program may be compiling.
    """
    if callable(progress):
        yield from _call(windows, total or 0, progress)
        return
    with tqdm(total=total, unit="window", disable=None if progress else True) as bar:
        bar.set_description("compiling and sampling")
        for window in windows:
            yield window
            bar.set_description("sampling")
            bar.update()


def _call(windows: Iterable[T], total: int, progress: Callable[[int, int], None]) -> Iterator[T]:
    """The windows; `progress` is called when the next one is asked for."""
    done = 0
    progress(done, total)
    for done, window in enumerate(windows, start=1):
        yield window
        progress(done, total)
