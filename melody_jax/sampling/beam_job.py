"""Batch jobs for more clips than a few processes make: Apache Beam distributes the shares of a job to workers.

Share i is what process i of a job of several processes makes (`batch_job.py`). Only the numbers of shares travel
through the pipeline: every worker must see the prompt file, the release and the folder of the clips under the same
path. A share that a runner starts again continues where it ended.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from melody_jax.data.beam_runner import beam, running
from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job
from melody_jax.sampling.prompt_file import read_prompt_file
from melody_jax.sampling.system import System


class MakeShare(beam.DoFn):
    """Makes the clips of a share; each worker loads the system once.

    load: returns the system. job: the job, with any process. defaults: settings for the lines that lack them.
    """

    def __init__(self, load: Callable[[], System], job: BatchJobConfig, defaults: dict[str, Any]) -> None:
        self._load = load
        self._job = job
        self._defaults = defaults

    def setup(self) -> None:
        """Loads the system and reads the prompt file."""
        self._system = self._load()
        self._lines = read_prompt_file(self._job.prompts, self._defaults)

    def process(self, element: int, *args: Any, **kwargs: Any) -> None:
        """Makes the missing clips of share `element`."""
        run_batch_job(self._system, replace(self._job, process=element), self._lines)


def run_shares(
    load: Callable[[], System], job: BatchJobConfig, defaults: dict[str, Any], options: tuple[str, ...]
) -> None:
    """Makes the missing clips of all `job.processes` shares.

    Args:
        load: returns the system; it must be possible to pickle it.
        job: the job; its `process` does not matter.
        defaults: settings for the lines of the prompt file that lack them.
        options: Beam's, without their dashes.

    Raises:
        UserError: as `run_batch_job`.
    """
    with running(options) as pipeline:
        _ = (
            pipeline
            | "shares" >> beam.Create(range(job.processes))
            | "distribute shares" >> beam.Reshuffle()
            | "make clips" >> beam.ParDo(MakeShare(load, job, defaults))
        )
