"""The work of `melody prepare` on recordings, as plain functions of a job and a unit.

Any worker can run them, and run them again: what already exists is not made again. First every part of every unit is
inspected (decoded, cut, filtered, fingerprinted); then each unit's shard is written without duplicates.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from melody_jax import files
from melody_jax.data import records
from melody_jax.data.cutting import CutResult, Reject, cut_recording
from melody_jax.data.fingerprint import RecordingKey
from melody_jax.data.layouts import Recording
from melody_jax.data.records import read_shard, write_shard
from melody_jax.data.stderr import silenced_stderr
from melody_jax.data.work_folder import PART, Job


@dataclasses.dataclass(frozen=True)
class PartFingerprints:
    """Fingerprints of the recordings of one part: N landmarks, R recordings (`owners` counts them from 0 per part)."""

    hashes: np.ndarray
    """int64 (N,)"""
    owners: np.ndarray
    """int64 (N,)"""
    times: np.ndarray
    """int64 (N,), frames"""
    audio_keys: np.ndarray
    """int64 (R,), 0 for recordings without pieces"""


def plan_units(recordings: list[Recording], max_recordings: int, max_bytes: int) -> list[list[Recording]]:
    """Divides recordings, in their order, into units of at most `max_recordings` and `max_bytes`.

    A single recording over `max_bytes` becomes a unit of its own.
    """
    units: list[list[Recording]] = []
    size = 0
    for recording in recordings:
        if not units or len(units[-1]) == max_recordings or size + recording.size > max_bytes:
            units.append([])
            size = 0
        units[-1].append(recording)
        size += max(recording.size, 0)
    return units


def inspect_part(job: Job, unit: int, part: int) -> PartFingerprints:
    """Cuts the recordings of a part into a candidate shard, unless that has been done, and returns fingerprints."""
    report = job.report_path(unit, part)
    candidate = job.candidate_path(unit, part)
    if not report.is_file() or not (candidate.is_file() or job.done_path(unit).is_file()):
        _write_part(job, unit, part)
    fields = records.decode_record(report.read_bytes())
    return PartFingerprints(fields["hashes"], fields["owners"], fields["times"], fields["audio_keys"])


def _write_part(job: Job, unit: int, part: int) -> None:
    recordings = job.read_plan(unit)[part * PART : (part + 1) * PART]
    results: list[CutResult] = []
    # libmpg123 writes to stderr when an MP3 is damaged; the rejects name such files.
    with job.progress(unit, part) as advance, silenced_stderr():

        def pieces() -> Iterator[dict[str, np.ndarray]]:
            for recording in recordings:
                result = cut_recording(recording, job.config.pieces)
                results.append(dataclasses.replace(result, records=[]))
                yield from result.records
                advance(1)

        write_shard(job.candidate_path(unit, part), pieces())
    facts = {
        "seconds": [result.seconds for result in results],
        "rejects": [reject for result in results for reject in result.rejects],
        "notes": [note for result in results for note in result.notes],
    }
    report = {
        "hashes": np.concatenate([result.hashes for result in results]),
        "owners": np.repeat(np.arange(len(results)), [len(result.hashes) for result in results]),
        "times": np.concatenate([result.times for result in results]),
        "audio_keys": np.array([result.audio_key for result in results], np.int64),
        "facts": records.encode_json(facts),
    }
    files.write_bytes(job.report_path(unit, part), records.encode_record(report))


def write_audio_shard(job: Job, unit: int, originals: dict[RecordingKey, RecordingKey]) -> None:
    """Writes the shard of a unit without duplicates, and its `done` file.

    `originals` maps each duplicate to the recording that it repeats.
    """
    if job.done_path(unit).is_file():
        return
    recordings = job.read_plan(unit)
    seconds, rejects, notes = _read_reports(job, unit)
    duplicates = {
        recording.id: originals[unit, index]
        for index, recording in enumerate(recordings)
        if (unit, index) in originals
    }
    for name, (other_unit, index) in duplicates.items():
        original = job.read_plan(other_unit)[index].id
        rejects.append({"recording": name, "reason": "duplicate", "detail": f"of {original}"})
    path = job.shard_path("audio", unit)
    shard = write_shard(path, _unique_pieces(job, unit, set(duplicates)))
    used_seconds = [
        length
        for recording, length in zip(recordings, seconds, strict=True)
        if recording.id not in duplicates
    ]
    counts = {
        "recordings": len(recordings),
        "used": sum(length > 0 for length in used_seconds),
        "seconds": sum(used_seconds),
    }
    job.write_done(unit, shard, rejects, counts, notes)
    for part in range(job.parts(unit)):
        job.candidate_path(unit, part).unlink(missing_ok=True)


def _read_reports(job: Job, unit: int) -> tuple[list[float], list[Reject], list[Reject]]:
    """Seconds of music in each recording of a unit, the rejects of inspection, and the notes."""
    seconds: list[float] = []
    rejects: list[Reject] = []
    notes: list[Reject] = []
    for part in range(job.parts(unit)):
        report = records.decode_record(job.report_path(unit, part).read_bytes())
        facts = records.decode_json(report["facts"])
        seconds += facts["seconds"]
        rejects += facts["rejects"]
        notes += facts["notes"]
    return seconds, rejects, notes


def _unique_pieces(job: Job, unit: int, duplicates: set[str]) -> Iterator[dict[str, np.ndarray]]:
    """The candidate pieces of a unit except those of the named recordings."""
    for part in range(job.parts(unit)):
        for record in read_shard(job.candidate_path(unit, part)):
            if records.decode_json(record["meta"])["recording"] not in duplicates:
                yield record
