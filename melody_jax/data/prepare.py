"""`melody prepare`: recordings become audio shards, and audio shards become feature shards, on any Apache Beam runner.

The work is divided into units before anything runs: a unit of recordings becomes one audio shard, an audio shard one
feature shard. The result of a unit depends on nothing but its input, and every file is written atomically. A killed run
therefore resumes with what is missing, and the shards are the same bytes for any number of workers. Until the folder is
finished, `.work` in it holds the plan and the state of the units; the manifest is completed last.

    audio     inspect recordings (decode, cut, filter, fingerprint) -> find duplicates over all units -> write shards
    features  run the networks over audio shards in batches
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from melody_jax import __version__, files, folders, object_store, release, release_folder, release_source
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.data import audio_units, layouts, records
from melody_jax.data.feature_shape import SETTING, check_audio_source, shape_of_networks, vae_format
from melody_jax.data.layouts import Recording
from melody_jax.data.prepare_config import FEATURE_NETWORKS, FeatureConfig, PieceConfig, PrepareConfig
from melody_jax.data.records import MANIFEST, Shard, ShardManifest, read_manifest, write_manifest
from melody_jax.data.work_folder import WORK, Job
from melody_jax.errors import UserError
from melody_jax.mirror import mirrored

REJECTS = "rejects.jsonl"
NOTES = "notes.jsonl"


def prepare(config: PrepareConfig) -> ShardManifest:
    """Writes the shards that are missing in `config.out` and returns its manifest.

    With `networks` and recordings as the source, the audio shards are written to `<out>/audio` first. Rejected
    recordings are listed in rejects.jsonl with the reason and counted in the manifest.

    Raises:
        UserError: the source or the networks do not exist, nothing is usable, or `out` was made with other settings.
    """
    config = _with_local_source(config)
    if object_store.is_remote(config.out) and config.beam:
        raise UserError(
            f"--out is {config.out}; workers of --beam share a folder for unfinished work, so --out must be on a disk "
            "that all of them see"
        )
    with mirrored(config.out) as mirror:
        out = config.out if mirror.remote is None else str(mirror.folder)
        manifest = _prepare(_with_format(_with_absolute_paths(dataclasses.replace(config, out=out))))
    if mirror.remote is not None:
        print(f"{mirror}: uploaded", flush=True)
    return manifest


def _with_local_source(config: PrepareConfig) -> PrepareConfig:
    """The settings with a copy of the audio shards, if they are in a bucket; recordings in one are refused."""
    if not object_store.is_remote(config.source):
        return config
    try:
        return dataclasses.replace(config, source=str(records.local_shards(config.source)))
    except UserError as error:
        raise UserError(
            f"--source: {error}; recordings must be on a disk, only audio shards may be in a bucket"
        ) from error


def _prepare(config: PrepareConfig) -> ShardManifest:
    """Writes the missing shards to a local folder."""
    if folders.size_of(Path(config.source) / MANIFEST) >= 0:
        if config.captions:
            raise UserError(
                f"{config.source} holds shards, which include captions; --captions is for recordings"
            )
        if not config.networks:
            raise UserError(
                f"{config.source} holds audio shards already; --networks FOLDER makes features of them"
            )
        return _prepare_features(config, config.source, config.out)
    if not config.networks:
        return _prepare_audio(config, config.out)
    hashes = _network_hashes(config)  # missing networks are reported before hours of decoding
    audio_out = str(Path(config.out) / "audio")
    _prepare_audio(config, audio_out)
    return _prepare_features(config, audio_out, config.out, hashes)


def _with_absolute_paths(config: PrepareConfig) -> PrepareConfig:
    """The settings with absolute folders, since workers elsewhere have another working folder."""
    for name in ("source", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing; see melody prepare --help")
    config = dataclasses.replace(config, networks=release_source.local_folder(config.networks))
    given = {name: getattr(config, name) for name in ("source", "out", "networks") if getattr(config, name)}
    for folder in given.values():
        files.refuse_url(folder)
    if config.networks:
        given["networks"] = str(release_folder.locate(config.networks))
    absolute = {name: str(Path(folder).absolute()) for name, folder in given.items()}
    return dataclasses.replace(config, **absolute)


def _with_format(config: PrepareConfig) -> PrepareConfig:
    """The settings with the autoencoder's sample rate and channels, unless others are given."""
    if not config.networks or config.audio_format != DEFAULT_FORMAT:
        return config
    wanted = vae_format(config.networks)
    return dataclasses.replace(config, sample_rate=wanted.sample_rate, channels=wanted.channels)


def _prepare_audio(config: PrepareConfig, out: str) -> ShardManifest:
    from melody_jax.data import beam_pipelines

    recordings = _recordings(config)
    units = audio_units.plan_units(recordings, config.shard_recordings, config.shard_megabytes * 1_000_000)
    manifest = _begin(Path(out), "audio", _audio_settings(config, recordings), len(units))
    if manifest.finished:
        _report(out, manifest)
        return manifest
    job = Job(config, config.source, out, tuple(len(unit) for unit in units))
    for index, unit in enumerate(units):
        job.write_plan(index, unit)
    beam_pipelines.run_audio(job)
    return _finish(job, manifest)


def _audio_settings(config: PrepareConfig, recordings: list[Recording]) -> dict[str, Any]:
    """All that the audio shards depend on."""
    names = [field.name for field in dataclasses.fields(PieceConfig)]
    settings = {name: getattr(config, name) for name in (*names, "shard_recordings", "shard_megabytes")}
    if config.audio_format == DEFAULT_FORMAT:  # as in folders that were made when there was no other
        del settings["sample_rate"], settings["channels"]
    rows = [{**dataclasses.asdict(recording), "path": ""} for recording in recordings]
    for row in rows:
        del row["detail"]  # the wording of a message
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return settings | {"source": {"recordings": len(recordings), "sha256": digest}}


def _prepare_features(
    config: PrepareConfig, source: str, out: str, hashes: dict[str, str] | None = None
) -> ShardManifest:
    from melody_jax.data import beam_pipelines

    audio_source = records.open_shards(source, "audio")
    check_audio_source(audio_source, vae_format(config.networks))
    shards = audio_source.manifest.shards
    settings: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(FeatureConfig)
    }
    settings |= {"hashes": hashes or _network_hashes(config), "source": [shard.sha256 for shard in shards]}
    settings[SETTING] = shape_of_networks(config.networks).as_settings()
    manifest = _begin(Path(out), "features", settings, len(shards))
    if manifest.finished:
        _report(out, manifest)
        return manifest
    job = Job(config, source, out, tuple(shard.records for shard in shards))
    beam_pipelines.run_features(job)
    return _finish(job, manifest)


def _recordings(config: PrepareConfig) -> list[Recording]:
    if folders.size_of(Path(config.source) / "dataset_info.json") >= 0:
        from melody_jax.data import tfds_music

        return tfds_music.recordings(config.source)
    return layouts.recordings(
        config.source, config.layout, config.captions or None, config.captions_may_leave
    )


def _network_hashes(config: PrepareConfig) -> dict[str, str]:
    return {name: release.network_hash(config.networks, name) for name in FEATURE_NETWORKS}


def _begin(out: Path, kind: str, settings: dict[str, Any], shard_count: int) -> ShardManifest:
    """The manifest in `out`, or a new one without shards; also makes the work folder."""
    settings = json.loads(json.dumps(settings))
    try:
        if (out / MANIFEST).is_file():
            manifest = read_manifest(out)
            differing = [key for key in settings if manifest.settings.get(key) != settings[key]]
            changed = differing or manifest.kind != kind or manifest.shard_count != shard_count
            if changed and _is_initial(out, manifest):
                manifest = _new_manifest(out, kind, settings, shard_count)
            elif changed:
                names = ", ".join(differing) or "source"
                raise UserError(
                    f"{out}: holds {manifest.kind} made with another {names}; choose another --out"
                )
            for shard in manifest.shards:
                records.check_shard(out, shard)
        else:
            manifest = _new_manifest(out, kind, settings, shard_count)
        if manifest.finished:
            shutil.rmtree(out / WORK, ignore_errors=True)
        else:
            (out / WORK).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    return manifest


def _new_manifest(out: Path, kind: str, settings: dict[str, Any], shard_count: int) -> ShardManifest:
    files.make_folder(out)
    versions = {"melody_jax": __version__}
    manifest = ShardManifest(kind=kind, settings=settings, versions=versions, shard_count=shard_count)
    write_manifest(out, manifest)
    return manifest


def _is_initial(out: Path, manifest: ShardManifest) -> bool:
    """Whether a run has begun but no unit has any result yet, so that other settings lose nothing."""
    results = ("inspected-", "candidate-", "done-")
    names = os.listdir(out / WORK) if folders.is_folder(out / WORK) else []
    return not manifest.shards and not any(name.startswith(results) for name in names)


def _finish(job: Job, manifest: ShardManifest) -> ShardManifest:
    """Collects the results of the units in rejects.jsonl and the manifest, and removes the work folder."""
    results = [files.read_json(job.done_path(unit)) for unit in range(job.units)]
    rejects = [reject for result in results for reject in result["rejects"]]
    notes = [note for result in results for note in result["notes"]]
    items = "recordings" if manifest.kind == "audio" else "pieces"
    counts = {
        items: sum(result["counts"]["recordings"] for result in results),
        f"{items}_used": sum(result["counts"]["used"] for result in results),
        "hours": round(sum(result["counts"]["seconds"] for result in results) / 3600, 4),
        "rejects": dict(sorted(Counter(reject["reason"] for reject in rejects).items())),
    }
    if notes:
        counts["notes"] = dict(sorted(Counter(note["note"] for note in notes).items()))
    shards = tuple(Shard(**result["shard"]) for result in results)
    _write_lines(Path(job.out) / REJECTS, rejects)
    if notes:
        _write_lines(Path(job.out) / NOTES, notes)
    manifest = dataclasses.replace(manifest, shards=shards, counts=counts)
    if not manifest.records:
        raise UserError(f"{job.source}: nothing is usable; the first reject: {rejects[0]['detail']}")
    write_manifest(job.out, manifest)
    files.remove_unfinished(job.out)
    shutil.rmtree(Path(job.out) / WORK)
    _report(job.out, manifest)
    return manifest


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    files.write_bytes(path, lines.encode())


def _report(out: str, manifest: ShardManifest) -> None:
    """Prints the line that says what the folder holds, and what was rejected."""
    counts = manifest.counts
    items = "recordings" if manifest.kind == "audio" else "pieces"
    shard_kind = manifest.kind.removesuffix("s")
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    line = (
        f"{out}: {len(manifest.shards)} {shard_kind} shards, {manifest.records} records, "
        f"{counts['hours']:.2f} h, {size:.1f} MB, from {counts[f'{items}_used']} of {counts[items]} {items}"
    )
    if counts["rejects"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["rejects"].items())
        line += f"; rejected: {reasons} (see {REJECTS})"
    if counts.get("notes"):
        line += f"; used, but {', '.join(f'{count} {note}' for note, count in counts['notes'].items())} (see {NOTES})"
    print(line, flush=True)
