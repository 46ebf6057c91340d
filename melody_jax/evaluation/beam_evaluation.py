"""Evaluation of more clips than a few processes measure: Apache Beam distributes the shares to workers.

Share i is what process i of several processes does (`evaluate.py`): it makes clips, if there are none yet, and when all
of them exist it measures chunks of clips. Only the numbers of shares travel through the pipeline, and every worker must
see the folders under the same paths. A share that a runner starts again continues where it ended.
"""

from collections.abc import Callable, Iterator
from typing import Any

from melody_jax.data.beam_runner import beam, running


class MakeClips(beam.DoFn):
    """Makes the missing clips of a share, given its number."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def process(self, element: int, *args: Any, **kwargs: Any) -> Iterator[int]:
        """Yields the number of the share."""
        self._make(element)
        yield element


class Measure(beam.DoFn):
    """Measures the missing chunks of a share; each worker opens what it measures with once."""

    def __init__(self, open_inputs: Callable[[], Any], measure: Callable[[int, Any], Any]) -> None:
        self._open_inputs = open_inputs
        self._measure = measure

    def setup(self) -> None:
        """Opens what clips are measured with."""
        self._inputs = self._open_inputs()

    def process(self, element: int, *args: Any, **kwargs: Any) -> None:
        """Measures share `element`."""
        self._measure(element, self._inputs)


def run_shares(
    options: tuple[str, ...],
    processes: int,
    make: Callable[[int], Any] | None,
    open_inputs: Callable[[], Any],
    measure: Callable[[int, Any], Any],
) -> None:
    """Makes and measures what is missing in all shares.

    Args:
        options: Beam's, without their dashes.
        processes: number of shares.
        make: makes the clips of a share; None: they exist. All functions must be possible to pickle.
        open_inputs: returns what clips are measured with.
        measure: measures a share, with that.

    Raises:
        UserError: as a worker does.
    """
    with running(options) as pipeline:
        shares = pipeline | "shares" >> beam.Create(range(processes))
        if make is not None:
            shares = (
                shares | "distribute clips" >> beam.Reshuffle() | "make clips" >> beam.ParDo(MakeClips(make))
            )
        # The grouping in it waits until all clips exist.
        distributed = shares | "distribute measuring" >> beam.Reshuffle()
        _ = distributed | "measure" >> beam.ParDo(Measure(open_inputs, measure))
