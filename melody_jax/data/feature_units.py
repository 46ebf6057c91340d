"""The work of `melody prepare` on audio shards: one unit turns one audio shard into one feature shard."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import audio
from melody_jax.data import records
from melody_jax.data.cutting import Reject
from melody_jax.data.features import Extractor
from melody_jax.data.prepare_config import FeatureConfig
from melody_jax.data.records import read_manifest, read_shard, write_shard
from melody_jax.data.work_folder import Job

GROUP = 8
"""Pieces whose windows share batches."""


def write_feature_shard(job: Job, unit: int) -> None:
    """Writes the feature shard of a unit and its `done` file; pieces shorter than a window are rejected."""
    if job.done_path(unit).is_file():
        return
    shards = read_manifest(job.source).shards
    pieces = read_shard(Path(job.source) / shards[unit].name)
    first = sum(shard.records for shard in shards[:unit])
    rejects: list[Reject] = []
    counts = {"recordings": shards[unit].records, "used": 0, "seconds": 0.0}
    with job.progress(unit) as advance:
        features = _features(load_extractor(job), pieces, first, rejects, counts, advance)
        shard = write_shard(job.shard_path("features", unit), features)
    job.write_done(unit, shard, rejects, counts)


def load_extractor(job: Job) -> Extractor:
    """The networks of this process; they are loaded once."""
    return _extractor(job.config.networks, job.config.features, job.config.batch_size)


@functools.lru_cache(maxsize=1)
def _extractor(networks: str, config: FeatureConfig, batch_size: int) -> Extractor:
    return Extractor(networks, config, batch_size)


def _features(
    extractor: Extractor,
    pieces: Iterable[dict[str, np.ndarray]],
    first: int,
    rejects: list[Reject],
    counts: dict[str, Any],
    advance: Callable[[int], object],
) -> Iterator[dict[str, np.ndarray]]:
    """Feature records of audio records, `GROUP` at a time; `first` is the index of the first piece over all shards."""
    audio_records = list(pieces)
    for begin in range(0, len(audio_records), GROUP):
        group = audio_records[begin : begin + GROUP]
        waves: list[np.ndarray] = []
        metas: list[dict[str, Any]] = []
        for record in group:
            wave = audio.decode_flac_as(record["audio"].tobytes(), extractor.audio_format)
            meta = records.decode_json(record["meta"])
            if len(wave) < extractor.samples:
                detail = (
                    f"{len(wave)} samples in {extractor.audio_format}, a window needs {extractor.samples}"
                )
                rejects.append({"recording": meta["id"], "reason": "short", "detail": detail})
                continue
            waves.append(wave)
            metas.append(meta)
        if waves:
            counts["used"] += len(waves)
            counts["seconds"] += sum(len(wave) for wave in waves) / extractor.audio_format.sample_rate
            captions = [meta.get("captions") or [] for meta in metas]
            features = extractor.features(waves, captions, first + begin)
            for meta, fields in zip(metas, features, strict=True):
                yield {"meta": records.encode_json(meta)} | fields
        advance(len(group))
