"""The Apache Beam pipelines of `melody prepare`: which step waits for which; the work itself is in `units.py`.

Numbers of units travel through the pipeline, and landmarks of fingerprints; audio goes by way of files. So every worker
must see the source and the output folder under the same path: a network disk, or a mounted bucket.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

with contextlib.ExitStack() as _quiet:  # Beam warns about the Google packages it could use if they were there
    logging.disable(logging.WARNING)
    _quiet.callback(logging.disable, logging.NOTSET)
    import apache_beam as beam
    from apache_beam import pvalue
    from apache_beam.options.pipeline_options import PipelineOptions

from tqdm import tqdm

from melody_jax.data import fingerprint
from melody_jax.data.units import Job, extract, finish, inspect, warm_up
from melody_jax.errors import UserError

COMMON = 100
"""Recordings that share a landmark are compared all with all up to this many, beyond it each with the next."""
HERE = ("runner=DirectRunner",)
CORES = (*HERE, "direct_running_mode=multi_processing", "direct_num_workers=0")

Name = tuple[int, int]
"""A recording: its unit, and its number in it."""
Mark = tuple[Name, int, int]
"""Whose landmark, its time in frames, and how many landmarks the recording has."""


def run_audio(job: Job, sizes: list[int]) -> None:
    """Inspects every unit, finds copies among all recordings, and writes every unit's shard."""
    with _running(job, job.config.beam or CORES, sizes, "inspected-*.safetensors", "recording") as pipeline:
        units = _units(pipeline, job.units)
        copies = (
            units
            | "inspect" >> beam.ParDo(Inspect(job))
            | "by landmark" >> beam.GroupByKey()
            | "share a landmark" >> beam.FlatMap(pairs)
            | "by pair" >> beam.GroupByKey()
            | "copies" >> beam.Filter(agree, job.config.duplicate_share)
            | "names" >> beam.Keys()
        )
        _ = units | "finish" >> beam.ParDo(Finish(job), pvalue.AsList(copies))


def run_features(job: Job, sizes: list[int]) -> None:
    """Runs the networks over every audio shard."""
    with _running(job, job.config.beam or HERE, sizes, "done-*.json", "piece") as pipeline:
        _ = _units(pipeline, job.units) | "extract" >> beam.ParDo(Extract(job))


class Inspect(beam.DoFn):
    """Unit -> (key, `Mark`) of everything by which its recordings can be recognised."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: int, *args: Any, **kwargs: Any) -> Iterator[tuple[int, Mark]]:
        """Inspects the unit."""
        hashes, owners, times, exact = inspect(self._job, element)
        lengths = [int((owners == i).sum()) for i in range(len(exact))]
        for key, owner, time in zip(hashes.tolist(), owners.tolist(), times.tolist(), strict=True):
            yield key, ((element, owner), time, lengths[owner])
        for owner, key in enumerate(exact.tolist()):
            if key:
                yield key, ((element, owner), 0, 0)


class Finish(beam.DoFn):
    """Writes the shard of a unit; the side input is every (earlier, later) pair of copies."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: int, copies: Iterable[tuple[Name, Name]], *args: Any, **kwargs: Any) -> None:
        """Finishes the unit."""
        finish(self._job, element, fingerprint.first_copies(copies))


class Extract(beam.DoFn):
    """Writes the feature shard of a unit; the networks are loaded once a worker."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def setup(self) -> None:
        """Loads the networks."""
        warm_up(self._job)

    def process(self, element: int, *args: Any, **kwargs: Any) -> None:
        """Extracts the unit."""
        extract(self._job, element)


def pairs(group: tuple[int, Iterable[Mark]]) -> Iterator[tuple[tuple[Name, Name], tuple[int, int]]]:
    """Every pair of recordings that share a key -> how far apart it is in them, and landmarks of the one with fewer."""
    marks = sorted(group[1])
    reach = len(marks) if len(marks) <= COMMON else 1
    for i, (one, at, length) in enumerate(marks):
        for other, later, own in marks[i + 1 : i + 1 + reach]:
            yield (one, other), (later - at, min(length, own))


def agree(pair: tuple[tuple[Name, Name], Iterable[tuple[int, int]]], share: float) -> bool:
    """Whether a pair are copies: equal audio, or enough landmarks at one distance."""
    shared = list(pair[1])
    fewer = min(own for _, own in shared)
    return fewer == 0 or fingerprint.is_copy([apart for apart, _ in shared], fewer, share)


def _units(pipeline: Any, count: int) -> Any:
    return pipeline | "units" >> beam.Create(range(count)) | "spread" >> beam.Reshuffle()


@contextlib.contextmanager
def _running(job: Job, options: tuple[str, ...], sizes: list[int], finished: str, unit: str) -> Iterator[Any]:
    """A pipeline that runs when the block ends, under a progress bar that looks which units have left their file."""
    # Without the option, DirectRunner would download a runner written in Go and start it.
    arguments = ["allow_unsafe_triggers", "default_sdk_harness_log_level=ERROR", *options]
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # what fails is raised, with its traceback
    stop = threading.Event()

    def watch() -> None:
        with tqdm(total=sum(sizes), desc="prepare", unit=unit, dynamic_ncols=True) as bar:
            while True:
                last = stop.wait(0.5)
                bar.update(
                    sum(sizes[int(path.stem.split("-")[1])] for path in job.work("").glob(finished)) - bar.n
                )
                if last:
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    pipeline = beam.Pipeline(options=PipelineOptions([f"--{argument}" for argument in arguments]))
    yield pipeline
    watcher.start()
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        # A runner hands on what a worker raised as text.
        if said := re.search(
            r"UserError: (.+?)(?: \[while running|\\n|\n|$)", f"{type(error).__name__}: {error}"
        ):
            raise UserError(said[1]) from error
        raise
    finally:
        stop.set()
        watcher.join()
