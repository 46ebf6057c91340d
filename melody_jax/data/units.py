"""The work of `melody prepare` in units: plain functions of a job and a number, which any worker may do, and do again.

What is there is not made again. `plan-*.json` are the recordings of a unit, `candidate-*` and `inspected-*` its pieces
and fingerprints; `done-*.json` says that its shard is written, and what was refused.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from melody_jax import audio
from melody_jax.data import records
from melody_jax.data.features import Extractor, FeatureConfig
from melody_jax.data.layouts import Recording
from melody_jax.data.pieces import Cut, PieceConfig, Reject, cut
from melody_jax.data.records import read_manifest, read_shard, shard_name, write_shard

if TYPE_CHECKING:
    from melody_jax.data.prepare import PrepareConfig

WORK = ".work"
"""Folder of what is not finished, in the folder of the shards."""
TOGETHER = 8
"""Pieces whose windows share batches."""

Copies = dict[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a worker must know: small, picklable, the same for every unit."""

    config: "PrepareConfig"
    out: str
    source: str
    units: int

    def work(self, name: str) -> Path:
        """A file in the folder of what is not finished."""
        return Path(self.out) / WORK / name


def plan(found: list[Recording], most: int, most_bytes: int) -> list[list[Recording]]:
    """Recordings in their order, in units of at most `most` and, unless it is a single one, `most_bytes`."""
    units: list[list[Recording]] = []
    size = 0
    for recording in found:
        if not units or len(units[-1]) == most or size + recording.size > most_bytes:
            units.append([])
            size = 0
        units[-1].append(recording)
        size += max(recording.size, 0)
    return units


def inspect(job: Job, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cuts a unit's recordings into a candidate shard, if that has not been done.

    Returns fingerprints: of N landmarks hash, recording in the unit and time, int64 (N,), and the exact key of each of
    its recordings, 0 for those that gave nothing.
    """
    report, candidate = (
        job.work(f"inspected-{unit:05d}.safetensors"),
        job.work(f"candidate-{unit:05d}.array_record"),
    )
    if not report.is_file() or not (candidate.is_file() or done(job, unit).is_file()):
        cuts: list[Cut] = []
        write_shard(candidate, _candidates(_plan(job, unit), job.config, cuts))
        rejects = [reject for found in cuts for reject in found.rejects]
        facts = {"seconds": [found.seconds for found in cuts], "rejects": rejects}
        content = {
            "hashes": np.concatenate([found.hashes for found in cuts]),
            "owners": np.repeat(np.arange(len(cuts)), [len(found.hashes) for found in cuts]),
            "times": np.concatenate([found.times for found in cuts]),
            "exact": np.array([found.exact for found in cuts], np.int64),
            "facts": records.encode_json(facts),
        }
        records.write_bytes(report, records.encode_record(content))
    kept = records.decode_record(report.read_bytes())
    return kept["hashes"], kept["owners"], kept["times"], kept["exact"]


def finish(job: Job, unit: int, copies: Copies) -> None:
    """Writes a unit's audio shard without the recordings that are copies of earlier ones, and what became of them."""
    finished, candidate = done(job, unit), job.work(f"candidate-{unit:05d}.array_record")
    if finished.is_file():
        return
    unit_recordings = _plan(job, unit)
    report = job.work(f"inspected-{unit:05d}.safetensors").read_bytes()
    facts = records.decode_json(records.decode_record(report)["facts"])
    copied = {
        unit_recordings[i].id: copies[unit, i] for i in range(len(unit_recordings)) if (unit, i) in copies
    }
    rejects: list[Reject] = list(facts["rejects"])
    for name, (other, number) in copied.items():
        rejects.append(
            {"recording": name, "reason": "duplicate", "detail": f"of {_plan(job, other)[number].id}"}
        )
    kept = [recording.id not in copied for recording in unit_recordings]
    path = Path(job.out) / shard_name("audio", unit, job.units)
    shard = write_shard(path, (record for record in read_shard(candidate) if _owner(record) not in copied))
    used = sum(one and seconds > 0 for one, seconds in zip(kept, facts["seconds"], strict=True))
    seconds = sum(seconds for one, seconds in zip(kept, facts["seconds"], strict=True) if one)
    counts = {"recordings": len(unit_recordings), "used": used, "seconds": seconds}
    write_json(finished, {"shard": dataclasses.asdict(shard), "rejects": rejects, "counts": counts})
    candidate.unlink(missing_ok=True)


def extract(job: Job, unit: int) -> None:
    """Writes a unit's feature shard; pieces shorter than a window are refused."""
    finished = done(job, unit)
    if finished.is_file():
        return
    extractor = _extractor(job.config.networks, _feature_config(job.config), job.config.batch_size)
    shards = read_manifest(job.source).shards
    before, source = sum(shard.records for shard in shards[:unit]), Path(job.source) / shards[unit].name
    rejects: list[Reject] = []
    counts = {"recordings": shards[unit].records, "used": 0, "seconds": 0.0}
    path = Path(job.out) / shard_name("features", unit, job.units)
    shard = write_shard(path, _features(extractor, read_shard(source), before, rejects, counts))
    write_json(finished, {"shard": dataclasses.asdict(shard), "rejects": rejects, "counts": counts})


def warm_up(job: Job) -> None:
    """Loads the networks of this process before its first unit."""
    _extractor(job.config.networks, _feature_config(job.config), job.config.batch_size)


@functools.lru_cache(maxsize=1)
def _extractor(networks: str, config: FeatureConfig, batch_size: int) -> Extractor:
    return Extractor(networks, config, batch_size)


def _feature_config(config: "PrepareConfig") -> FeatureConfig:
    return FeatureConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(FeatureConfig)}
    )


def _candidates(
    unit: list[Recording], config: PieceConfig, cuts: list[Cut]
) -> Iterator[dict[str, np.ndarray]]:
    """The records of all pieces; what else was found goes to `cuts`."""
    for recording in unit:
        found = cut(recording, config)
        cuts.append(dataclasses.replace(found, records=[]))
        yield from found.records


def _features(
    extractor: Extractor,
    pieces: Iterable[dict[str, np.ndarray]],
    first: int,
    rejects: list[Reject],
    counts: dict[str, Any],
) -> Iterator[dict[str, np.ndarray]]:
    """Feature records of audio records, `TOGETHER` at a time; `first` is the number of the first in all shards."""
    numbered = list(enumerate(pieces, first))
    for begin in range(0, len(numbered), TOGETHER):
        waves, metas = [], []
        for _, record in numbered[begin : begin + TOGETHER]:
            wave, meta = audio.decode_flac(record["audio"].tobytes()), records.decode_json(record["meta"])
            if len(wave) < extractor.samples:
                detail = f"{len(wave)} samples at 24 kHz, a window needs {extractor.samples}"
                rejects.append({"recording": meta["id"], "reason": "short", "detail": detail})
                continue
            waves.append(wave)
            metas.append(meta)
        if waves:
            counts["used"] += len(waves)
            counts["seconds"] += sum(len(wave) for wave in waves) / audio.SAMPLE_RATE
            captions = [meta.get("captions") or [] for meta in metas]
            for meta, found in zip(metas, extractor.features(waves, captions, first + begin), strict=True):
                yield {"meta": records.encode_json(meta)} | found


def done(job: Job, unit: int) -> Path:
    """The file that says that a unit is finished."""
    return job.work(f"done-{unit:05d}.json")


def _plan(job: Job, unit: int) -> list[Recording]:
    listed = json.loads(job.work(f"plan-{unit:05d}.json").read_text(encoding="utf-8"))
    for fields in listed:
        fields["clip"] = tuple(fields["clip"]) if fields["clip"] else None
    return [Recording(**fields) for fields in listed]


def _owner(record: dict[str, np.ndarray]) -> str:
    return records.decode_json(record["meta"])["recording"]


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    records.write_bytes(path, json.dumps(content, ensure_ascii=False).encode())
