"""The Apache Beam pipelines of `melody prepare`: the order of the work that `audio_units` and `feature_units` do.

Only indices of units and landmarks travel through a pipeline; audio travels through files. Every worker must therefore
see the source and the output folder under the same path: a network disk, or a mounted bucket.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from apache_beam import pvalue
from tqdm import tqdm

from melody_jax.data import audio_units, beam_runner, fingerprint
from melody_jax.data.beam_runner import ALL_CORES, ONE_PROCESS, beam
from melody_jax.data.fingerprint import RecordingKey
from melody_jax.data.stderr import silenced_stderr
from melody_jax.data.work_folder import PART, Job

MAX_COMPARED = 100
"""Up to this many recordings with a common landmark are compared pairwise, more are compared with their neighbours."""
REFRESH_SECONDS = 0.5

Landmark = tuple[RecordingKey, int, int]
"""The recording of a landmark, its time in frames, and the recording's number of landmarks."""


def run_audio(job: Job) -> None:
    """Inspects every part, finds duplicates among all recordings, and writes the shard of every unit."""
    parts = [(unit, part) for unit in range(job.units) for part in range(job.parts(unit))]
    with _running(job, job.config.beam or ALL_CORES, "recordings", "starting workers") as pipeline:
        duplicates = (
            pipeline
            | "parts" >> beam.Create(parts)
            | "distribute parts" >> beam.Reshuffle()
            | "inspect" >> beam.ParDo(InspectPart(job))
            | "group by landmark" >> beam.GroupByKey()
            | "pair" >> beam.FlatMap(landmark_pairs)
            | "group by pair" >> beam.GroupByKey()
            | "keep duplicates" >> beam.Filter(are_duplicates, job.config.duplicate_share)
            | "drop offsets" >> beam.Keys()
        )
        _ = (
            pipeline
            | "units" >> beam.Create(range(job.units))
            | "distribute units" >> beam.Reshuffle()
            | "write shards" >> beam.ParDo(WriteAudioShard(job), pvalue.AsList(duplicates))
        )


def run_features(job: Job) -> None:
    """Applies the networks to every audio shard."""
    with _running(job, job.config.beam or ONE_PROCESS, "pieces", "compiling networks") as pipeline:
        _ = (
            pipeline
            | "units" >> beam.Create(range(job.units))
            | "distribute units" >> beam.Reshuffle()
            | "write shards" >> beam.ParDo(WriteFeatureShard(job))
        )


class InspectPart(beam.DoFn):
    """(unit, part) -> (key, `Landmark`) for everything that identifies the part's recordings."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: tuple[int, int], *args: Any, **kwargs: Any) -> Iterator[tuple[int, Landmark]]:
        """Inspects the part."""
        unit, part = element
        prints = audio_units.inspect_part(self._job, unit, part)
        first = part * PART
        counts = [int((prints.owners == i).sum()) for i in range(len(prints.audio_keys))]
        columns = (prints.hashes.tolist(), prints.owners.tolist(), prints.times.tolist())
        for key, owner, time in zip(*columns, strict=True):
            yield key, ((unit, first + owner), time, counts[owner])
        for owner, key in enumerate(prints.audio_keys.tolist()):
            if key:
                yield key, ((unit, first + owner), 0, 0)


class WriteAudioShard(beam.DoFn):
    """Writes the shard of a unit; the side input lists every (earlier, later) pair of duplicates."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(
        self,
        element: int,
        duplicates: Iterable[tuple[RecordingKey, RecordingKey]],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Writes the shard."""
        audio_units.write_audio_shard(self._job, element, fingerprint.first_copies(duplicates))


class WriteFeatureShard(beam.DoFn):
    """Writes the feature shard of a unit; each worker loads the networks once.

    `feature_units` is imported by the methods, so that workers that inspect recordings start without JAX.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def setup(self) -> None:
        """Loads the networks."""
        from melody_jax.data import feature_units

        feature_units.load_extractor(self._job)

    def process(self, element: int, *args: Any, **kwargs: Any) -> None:
        """Writes the shard."""
        from melody_jax.data import feature_units

        feature_units.write_feature_shard(self._job, element)


def landmark_pairs(
    group: tuple[int, Iterable[Landmark]],
) -> Iterator[tuple[tuple[RecordingKey, RecordingKey], tuple[int, int]]]:
    """Every pair of recordings with a common landmark -> its time offset, and the smaller number of landmarks."""
    landmarks = sorted(group[1])
    reach = len(landmarks) if len(landmarks) <= MAX_COMPARED else 1
    for i, (one, time, count) in enumerate(landmarks):
        for other, other_time, other_count in landmarks[i + 1 : i + 1 + reach]:
            yield (one, other), (other_time - time, min(count, other_count))


def are_duplicates(
    pair: tuple[tuple[RecordingKey, RecordingKey], Iterable[tuple[int, int]]], share: float
) -> bool:
    """Whether a pair are duplicates: equal audio, or enough landmarks at one time offset."""
    offsets, counts = zip(*pair[1], strict=True)
    fewer = min(counts)
    return fewer == 0 or fingerprint.is_copy(offsets, fewer, share)


def _running(job: Job, options: tuple[str, ...], items: str, first_stage: str) -> AbstractContextManager[Any]:
    """A pipeline that runs when the block ends, with a progress bar that counts finished items.

    `first_stage` is shown until the first item is finished.
    """

    @contextlib.contextmanager
    def while_running() -> Iterator[None]:
        # Beam's local workers log their start on stderr; errors are raised.
        quiet = silenced_stderr() if options is ALL_CORES else contextlib.nullcontext()
        with _progress_bar(job, items, first_stage), quiet:
            yield

    return beam_runner.running(options, while_running)


@contextlib.contextmanager
def _progress_bar(job: Job, items: str, first_stage: str) -> Iterator[None]:
    """One moving line on a terminal while the block runs; the counts are those that workers leave in files."""
    ended = threading.Event()
    start = job.finished_items()
    total = sum(job.sizes)
    stderr = os.dup(2)  # a handle of its own, since stderr is silenced while recordings are decoded

    def watch() -> None:
        with (
            os.fdopen(stderr, "w") as file,
            tqdm(
                total=total, initial=start, unit=f" {items}", file=file, dynamic_ncols=True, disable=None
            ) as bar,
        ):
            while not ended.wait(REFRESH_SECONDS):
                bar.n = min(job.finished_items(), total)
                stage = "writing shards" if bar.n == total else items if bar.n > start else first_stage
                bar.set_description(stage)
            bar.n = min(job.finished_items(), total)
            bar.set_description(items)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
