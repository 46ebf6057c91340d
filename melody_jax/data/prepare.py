"""`melody prepare`: recordings become audio shards, and audio shards become feature shards, on any Apache Beam runner.

Work is divided into units before anything runs: a unit of recordings becomes one audio shard, an audio shard one
feature shard. What a unit makes does not depend on who makes it or when, and every file appears whole or not at all; so
a run that was killed goes on with what is missing, and the result is the same bytes whatever the number of workers.
Until the folder is finished, `.work` in it holds the plan and what the units have done; the manifest is completed last.

    audio     inspect a unit (decode, cut, filter, fingerprint) -> find copies over all units -> write it without them
    features  run the networks over an audio shard in batches
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import __version__, audio, release
from melody_jax.data import layouts, records
from melody_jax.data.features import NETWORKS, Extractor, FeatureConfig
from melody_jax.data.layouts import Recording
from melody_jax.data.pieces import Cut, PieceConfig, Reject, cut
from melody_jax.data.records import MANIFEST, Manifest, Shard, read_manifest, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError

REJECTS = "rejects.jsonl"
WORK = ".work"
TOGETHER = 8
"""Pieces whose windows share batches."""

Copies = dict[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(FeatureConfig, PieceConfig):
    """Turns recordings into audio shards, and audio shards into features for the LM and the diffusion model."""

    source: str = ""
    """Folder of recordings, of audio shards, or of a TFDS dataset."""
    out: str = ""
    """Folder of the shards made; run again to go on after an interruption."""
    layout: str = "files"
    """How recordings lie in `source`: files, audiofolder, musiccaps, mtg-jamendo, fma or song-describer."""
    captions: str = ""
    """Table of the layout; for files: CSV or JSONL with file and caption. Empty: none."""
    networks: str = ""
    """Folder of the released mulan, tokenizer and vae: feature shards are made; empty: audio shards are."""
    shard_recordings: int = 64
    """Most recordings that one audio shard is made of; an interruption costs at most a shard's work a worker."""
    shard_megabytes: int = 1024
    """Most megabytes of files that one audio shard is made of, unless a single file is larger."""
    batch_size: int = 8
    """Windows a network call."""
    beam: str = ""
    """Options of Apache Beam, such as "--runner=FlinkRunner --flink_master=host:8081"; empty: this machine, a process
    a core for recordings and one process for networks."""

    def __post_init__(self) -> None:
        FeatureConfig.__post_init__(self)
        PieceConfig.__post_init__(self)
        for name in ("shard_recordings", "shard_megabytes", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a worker must know: small, picklable, the same for every unit."""

    config: PrepareConfig
    out: str
    source: str
    units: int

    def work(self, name: str) -> Path:
        """A file in the folder of what is not finished."""
        return Path(self.out) / WORK / name


def prepare(config: PrepareConfig) -> Manifest:
    """Writes the shards that are missing in `config.out` and returns its manifest.

    With `networks` and recordings as the source, the audio shards are written to `<out>/audio` first. What could not be
    used is in rejects.jsonl, with the reason, and counted in the manifest.

    Raises:
        UserError: no such source or networks, nothing usable, or `out` holds what was made otherwise.
    """
    for name in ("source", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing; see melody prepare --help")
    if (Path(config.source) / MANIFEST).is_file():
        if config.captions:
            raise UserError(f"{config.source} holds shards, whose captions are inside; --captions is for recordings")
        if not config.networks:
            raise UserError(f"{config.source} holds audio shards already; --networks FOLDER makes features of them")
        return _prepare_features(config, config.source, config.out)
    if not config.networks:
        return _prepare_audio(config, config.out)
    hashes = _network_hashes(config)  # missing networks are noticed before hours of decoding
    audio_out = str(Path(config.out) / "audio")
    _prepare_audio(config, audio_out)
    return _prepare_features(config, audio_out, config.out, hashes)


def _prepare_audio(config: PrepareConfig, out: str) -> Manifest:
    from melody_jax.data import distributed

    found = _recordings(config)
    units = plan(found, config.shard_recordings, config.shard_megabytes * 1_000_000)
    chosen = [field.name for field in dataclasses.fields(PieceConfig)] + ["shard_recordings", "shard_megabytes"]
    settings: dict[str, Any] = {name: getattr(config, name) for name in chosen}
    listed = [{**dataclasses.asdict(recording), "path": ""} for recording in found]
    settings["source"] = {"recordings": len(found), "sha256": _digest(listed)}
    manifest = _begin(Path(out), "audio", settings, len(units))
    if manifest.finished:
        return manifest
    job = Job(config, out, config.source, len(units))
    for index, unit in enumerate(units):
        _write_json(job.work(f"plan-{index:05d}.json"), [dataclasses.asdict(recording) for recording in unit])
    distributed.run_audio(job, [len(unit) for unit in units])
    return _finish(job, manifest)


def _prepare_features(config: PrepareConfig, source: str, out: str, hashes: dict[str, str] | None = None) -> Manifest:
    from melody_jax.data import distributed

    shards = records.open_shards(source, "audio").manifest.shards
    settings: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(FeatureConfig)}
    settings |= {"hashes": hashes or _network_hashes(config), "source": [shard.sha256 for shard in shards]}
    manifest = _begin(Path(out), "features", settings, len(shards))
    if manifest.finished:
        return manifest
    job = Job(config, out, source, len(shards))
    distributed.run_features(job, [shard.records for shard in shards])
    return _finish(job, manifest)


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
    report, candidate = job.work(f"inspected-{unit:05d}.safetensors"), job.work(f"candidate-{unit:05d}.array_record")
    if not report.is_file() or not (candidate.is_file() or _done(job, unit).is_file()):
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
    done, candidate = _done(job, unit), job.work(f"candidate-{unit:05d}.array_record")
    if done.is_file():
        return
    unit_recordings = _plan(job, unit)
    facts = records.decode_json(
        records.decode_record(job.work(f"inspected-{unit:05d}.safetensors").read_bytes())["facts"]
    )
    copied = {unit_recordings[i].id: copies[unit, i] for i in range(len(unit_recordings)) if (unit, i) in copies}
    rejects: list[Reject] = list(facts["rejects"])
    for name, (other, number) in copied.items():
        rejects.append({"recording": name, "reason": "duplicate", "detail": f"of {_plan(job, other)[number].id}"})
    kept = [recording.id not in copied for recording in unit_recordings]
    path = Path(job.out) / shard_name("audio", unit, job.units)
    shard = write_shard(path, (record for record in _read(candidate) if _owner(record) not in copied))
    used = sum(one and seconds > 0 for one, seconds in zip(kept, facts["seconds"], strict=True))
    seconds = sum(seconds for one, seconds in zip(kept, facts["seconds"], strict=True) if one)
    counts = {"recordings": len(unit_recordings), "used": used, "seconds": seconds}
    _write_json(done, {"shard": dataclasses.asdict(shard), "rejects": rejects, "counts": counts})
    candidate.unlink(missing_ok=True)


def extract(job: Job, unit: int) -> None:
    """Writes a unit's feature shard; pieces shorter than a window are refused."""
    done = _done(job, unit)
    if done.is_file():
        return
    extractor = _extractor(job.config.networks, _feature_config(job.config), job.config.batch_size)
    shards = read_manifest(job.source).shards
    before, source = sum(shard.records for shard in shards[:unit]), Path(job.source) / shards[unit].name
    rejects: list[Reject] = []
    counts = {"recordings": shards[unit].records, "used": 0, "seconds": 0.0}
    path = Path(job.out) / shard_name("features", unit, job.units)
    shard = write_shard(path, _features(extractor, _read(source), before, rejects, counts))
    _write_json(done, {"shard": dataclasses.asdict(shard), "rejects": rejects, "counts": counts})


def warm_up(job: Job) -> None:
    """Loads the networks of this process before its first unit."""
    _extractor(job.config.networks, _feature_config(job.config), job.config.batch_size)


@functools.lru_cache(maxsize=1)
def _extractor(networks: str, config: FeatureConfig, batch_size: int) -> Extractor:
    return Extractor(networks, config, batch_size)


def _feature_config(config: PrepareConfig) -> FeatureConfig:
    return FeatureConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(FeatureConfig)})


def _candidates(unit: list[Recording], config: PieceConfig, cuts: list[Cut]) -> Iterator[dict[str, np.ndarray]]:
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


def _recordings(config: PrepareConfig) -> list[Recording]:
    if (Path(config.source) / "dataset_info.json").is_file():
        from melody_jax.data import tfds_music

        return tfds_music.recordings(config.source)
    return layouts.recordings(config.source, config.layout, config.captions or None)


def _network_hashes(config: PrepareConfig) -> dict[str, str]:
    return {name: release.network_hash(config.networks, name) for name in NETWORKS}


def _begin(out: Path, kind: str, settings: dict[str, Any], shard_count: int) -> Manifest:
    """The manifest that is in `out`, or a new one without shards; the folder of what is not finished is there."""
    settings = json.loads(json.dumps(settings))
    try:
        if (out / MANIFEST).is_file():
            manifest = read_manifest(out)
            differing = [key for key in settings if manifest.settings.get(key) != settings[key]]
            if differing or manifest.kind != kind or manifest.shard_count != shard_count:
                what = ", ".join(differing) or "source"
                raise UserError(f"{out}: holds {manifest.kind} made with another {what}; choose another --out")
            for shard in manifest.shards:
                records.check_shard(out, shard)
        else:
            out.mkdir(parents=True, exist_ok=True)
            versions = {"melody_jax": __version__}
            manifest = Manifest(kind=kind, settings=settings, versions=versions, shard_count=shard_count)
            write_manifest(out, manifest)
        if not manifest.finished:
            (out / WORK).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    return manifest


def _finish(job: Job, manifest: Manifest) -> Manifest:
    """Gathers what the units did into rejects.jsonl and the manifest, and removes what is no longer needed."""
    results = [json.loads(_done(job, unit).read_text(encoding="utf-8")) for unit in range(job.units)]
    rejects = [reject for result in results for reject in result["rejects"]]
    kind = "recordings" if manifest.kind == "audio" else "pieces"
    counts = {
        kind: sum(result["counts"]["recordings"] for result in results),
        f"{kind}_used": sum(result["counts"]["used"] for result in results),
        "hours": round(sum(result["counts"]["seconds"] for result in results) / 3600, 4),
        "rejects": dict(sorted(Counter(reject["reason"] for reject in rejects).items())),
    }
    shards = tuple(Shard(**result["shard"]) for result in results)
    lines = "".join(json.dumps(reject, ensure_ascii=False, sort_keys=True) + "\n" for reject in rejects)
    records.write_bytes(Path(job.out) / REJECTS, lines.encode())
    manifest = dataclasses.replace(manifest, shards=shards, counts=counts)
    if rejects:
        said = ", ".join(f"{count} {reason}" for reason, count in counts["rejects"].items())
        print(f"{job.out}: {counts[f'{kind}_used']} of {counts[kind]} {kind} used; left out: {said}; see {REJECTS}")
    if not manifest.records:
        raise UserError(f"{job.source}: nothing could be used; the first: {rejects[0]['detail']}")
    write_manifest(job.out, manifest)
    shutil.rmtree(Path(job.out) / WORK)
    return manifest


def _done(job: Job, unit: int) -> Path:
    return job.work(f"done-{unit:05d}.json")


def _plan(job: Job, unit: int) -> list[Recording]:
    listed = json.loads(job.work(f"plan-{unit:05d}.json").read_text(encoding="utf-8"))
    for fields in listed:
        fields["clip"] = tuple(fields["clip"]) if fields["clip"] else None
    return [Recording(**fields) for fields in listed]


def _read(path: Path) -> Iterator[dict[str, np.ndarray]]:
    return records.read_shard(path)


def _owner(record: dict[str, np.ndarray]) -> str:
    return records.decode_json(record["meta"])["recording"]


def _write_json(path: Path, content: Any) -> None:
    records.write_bytes(path, json.dumps(content, ensure_ascii=False).encode())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
