"""`melody prepare`: recordings become audio shards, and audio shards become feature shards, on any Apache Beam runner.

Work is divided into units before anything runs: a unit of recordings becomes one audio shard, an audio shard one
feature shard. What a unit makes does not depend on who makes it or when, and every file appears whole or not at all; so
a run that was killed goes on with what is missing, and the result is the same bytes whatever the number of workers.
Until the folder is finished, `.work` in it holds the plan and what the units have done; the manifest is completed last.

    audio     inspect a unit (decode, cut, filter, fingerprint) -> find copies over all units -> write it without them
    features  run the networks over an audio shard in batches
"""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from melody_jax import __version__, release
from melody_jax.data import layouts, records, units
from melody_jax.data.features import NETWORKS, FeatureConfig
from melody_jax.data.layouts import Recording
from melody_jax.data.pieces import PieceConfig
from melody_jax.data.records import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from melody_jax.errors import UserError

REJECTS = "rejects.jsonl"


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
    beam: tuple[str, ...] = ()
    """Options of Apache Beam without their dashes, such as runner=FlinkRunner flink_master=host:8081; none: this
    machine, with a process a core for recordings and one process for the networks."""

    def __post_init__(self) -> None:
        FeatureConfig.__post_init__(self)
        PieceConfig.__post_init__(self)
        for name in ("shard_recordings", "shard_megabytes", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1")


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
    named = {name: getattr(config, name) for name in ("source", "out", "networks")}
    # Workers elsewhere have another working folder.
    config = dataclasses.replace(
        config, **{name: str(Path(path).absolute()) for name, path in named.items() if path}
    )
    if (Path(config.source) / MANIFEST).is_file():
        if config.captions:
            raise UserError(
                f"{config.source} holds shards, whose captions are inside; --captions is for recordings"
            )
        if not config.networks:
            raise UserError(
                f"{config.source} holds audio shards already; --networks FOLDER makes features of them"
            )
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
    planned = units.plan(found, config.shard_recordings, config.shard_megabytes * 1_000_000)
    chosen = [field.name for field in dataclasses.fields(PieceConfig)] + [
        "shard_recordings",
        "shard_megabytes",
    ]
    settings: dict[str, Any] = {name: getattr(config, name) for name in chosen}
    listed = [{**dataclasses.asdict(recording), "path": ""} for recording in found]
    settings["source"] = {"recordings": len(found), "sha256": _digest(listed)}
    manifest = _begin(Path(out), "audio", settings, len(planned))
    if manifest.finished:
        return manifest
    job = units.Job(config, out, config.source, len(planned))
    for index, unit in enumerate(planned):
        units.write_json(
            job.work(f"plan-{index:05d}.json"), [dataclasses.asdict(recording) for recording in unit]
        )
    distributed.run_audio(job, [len(unit) for unit in planned])
    return _finish(job, manifest)


def _prepare_features(
    config: PrepareConfig, source: str, out: str, hashes: dict[str, str] | None = None
) -> Manifest:
    from melody_jax.data import distributed

    shards = records.open_shards(source, "audio").manifest.shards
    settings: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(FeatureConfig)
    }
    settings |= {"hashes": hashes or _network_hashes(config), "source": [shard.sha256 for shard in shards]}
    manifest = _begin(Path(out), "features", settings, len(shards))
    if manifest.finished:
        return manifest
    job = units.Job(config, out, source, len(shards))
    distributed.run_features(job, [shard.records for shard in shards])
    return _finish(job, manifest)


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
                raise UserError(
                    f"{out}: holds {manifest.kind} made with another {what}; choose another --out"
                )
            for shard in manifest.shards:
                records.check_shard(out, shard)
        else:
            out.mkdir(parents=True, exist_ok=True)
            versions = {"melody_jax": __version__}
            manifest = Manifest(kind=kind, settings=settings, versions=versions, shard_count=shard_count)
            write_manifest(out, manifest)
        if manifest.finished:
            shutil.rmtree(out / units.WORK, ignore_errors=True)
        else:
            (out / units.WORK).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    return manifest


def _finish(job: units.Job, manifest: Manifest) -> Manifest:
    """Gathers what the units did into rejects.jsonl and the manifest, and removes what is no longer needed."""
    results = [json.loads(units.done(job, unit).read_text(encoding="utf-8")) for unit in range(job.units)]
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
        print(
            f"{job.out}: {counts[f'{kind}_used']} of {counts[kind]} {kind} used; left out: {said}; see {REJECTS}"
        )
    if not manifest.records:
        raise UserError(f"{job.source}: nothing could be used; the first: {rejects[0]['detail']}")
    write_manifest(job.out, manifest)
    for left in Path(job.out).glob(".*.part"):  # by workers that were killed
        left.unlink(missing_ok=True)
    shutil.rmtree(Path(job.out) / units.WORK)
    return manifest


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
