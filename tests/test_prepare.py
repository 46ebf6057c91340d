"""Audio shards of odd files, feature shards from tiny networks, killing and going on."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.preparation import BEAM, captions, prepared, write_networks
from helpers.recordings import music, odd_files

from melody_jax import audio, loudness, object_store, release
from melody_jax.audio_format import AudioFormat
from melody_jax.config import DataConfig
from melody_jax.data import audio_units, pipeline
from melody_jax.data import prepare as prepare_module
from melody_jax.data.cutting import cut_recording
from melody_jax.data.feature_shape import FeatureShape
from melody_jax.data.prepare import PrepareConfig, prepare
from melody_jax.data.records import (
    decode_json,
    open_shards,
    read_manifest,
)
from melody_jax.errors import UserError
from melody_jax.models import mulan, vae
from melody_jax.object_store import RemoteFolder

pytest.importorskip("apache_beam", reason="melody prepare needs the extra beam")
from melody_jax.data import beam_pipelines

Odd = tuple[Path, dict[str, str]]


ROWS = [("0.wav", "calm, slow piano"), ("0.wav", "soft"), ("1.wav", "loud"), ("2.wav", "fast")]
ROWS += [("gone.wav", "gone"), ("short.wav", "tiny"), ("torn.wav", "torn")]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for i, seconds in enumerate((1.6, 0.8, 1.4)):
        audio.write(folder / f"{i}.wav", music(i, seconds))
    audio.write(folder / "short.wav", music(9, 0.2))
    audio.write(folder / "uncaptioned.wav", music(10, 1.0))
    (folder / "torn.wav").write_bytes((folder / "0.wav").read_bytes()[:1000])
    captions(folder / "c.jsonl", ROWS)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def features(recordings: Path, networks: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    prepare(prepared(recordings, networks, out))
    return out


def rejects(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return {row["recording"]: row["reason"] for row in rows}


def test_recordings_become_features(features: Path, networks: str) -> None:
    manifest = read_manifest(features / "audio")
    assert (manifest.kind, manifest.records, manifest.shard_count) == ("audio", 3, 3)
    assert rejects(features / "audio") == {
        "gone.wav": "missing",
        "short.wav": "short",
        "torn.wav": "unreadable",
        "uncaptioned.wav": "uncaptioned",
    }
    assert manifest.counts["recordings"] == 7
    assert manifest.counts["recordings_used"] == 3
    assert manifest.counts["hours"] == pytest.approx(3.8 / 3600, abs=1e-4)
    meta = decode_json(open_shards(features / "audio")[0]["meta"])
    assert meta["captions"] == ["calm, slow piano", "soft"]
    assert (meta["id"], meta["recording"], meta["seconds"]) == ("0.wav#0", "0.wav", [0.0, 1.6])

    manifest = read_manifest(features)
    assert (manifest.records, manifest.shard_count, manifest.finished) == (3, 3, True)
    assert manifest.counts["pieces_used"] == 3
    assert manifest.settings["hashes"]["vae"] == release.network_hash(networks, "vae")
    first = open_shards(features, "features")[0]
    assert first["semantic_tokens"].shape == (40,)
    assert first["latents"].shape == (40, 8)
    assert first["latents"].dtype == np.float16
    np.testing.assert_array_equal(first["window_starts"], [0, 4, 8, 12, 16, 20, 24])
    assert first["prefix_tokens"].shape == (7, 3, 12)
    assert first["text_prefix_tokens"].shape == (2, 12)
    assert not (features / ".work").exists()
    data = DataConfig(folder=(str(features),), window_tokens=16, batch_size=2, networks=networks)
    assert set(pipeline.check_provenance(data, "features")) == {"mulan", "tokenizer", "vae"}
    sizes = FeatureShape(
        semantic_ids=64,
        prefix_levels=12,
        prefix_ids=8,
        latent_channels=8,
        latents_per_token=1,
        window_tokens=16,
    )
    assert next(pipeline.TrainingBatches(data, "features", shape=sizes))["latents"].shape == (2, 16, 8)


def test_features_are_those_of_the_networks(features: Path, networks: str) -> None:
    record = open_shards(features, "features")[0]
    piece = audio.decode_flac(open_shards(features / "audio")[0]["audio"].tobytes())
    wave = jnp.asarray(piece[None, : 16 * 960])
    params, config, _ = release.load_network(networks, "vae")
    latents = jax.jit(vae.encode, static_argnums=1)(params, config, wave)
    np.testing.assert_allclose(record["latents"][:12], latents[0, :12], atol=2e-3)
    params, config, _ = release.load_network(networks, "mulan")
    codes = mulan.quantise(params, config, jax.jit(mulan.embed_music, static_argnums=1)(params, config, wave))
    np.testing.assert_array_equal(record["prefix_tokens"][0, 0], codes[0])


def test_a_missing_feature_shard_is_made_again(features: Path, networks: str, tmp_path: Path) -> None:
    whole = read_manifest(features)
    source = Path(shutil.copytree(features / "audio", tmp_path / "audio"))
    again = prepare(prepared(source, networks, tmp_path / "out", captions=""))
    assert again.shards == whole.shards
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (features / "manifest.json").read_bytes()


@pytest.mark.parametrize("name", ["source", "networks", "out"])
def test_urls_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {"source": "a", "networks": "b", "out": "c"} | {name: "https://host/x"}
    with pytest.raises(UserError, match="https://host/x: a URL; this must be on a disk"):
        prepare(PrepareConfig(**folders))
    assert not list(tmp_path.iterdir())


def test_another_preparation_is_refused(
    features: Path, recordings: Path, networks: str, tmp_path: Path
) -> None:
    assert prepare(prepared(recordings, networks, features)) == read_manifest(features)
    with pytest.raises(UserError, match="another jitter"):
        prepare(prepared(recordings, networks, features, jitter=0.5))
    with pytest.raises(UserError, match="another piece_seconds"):
        prepare(prepared(recordings, networks, features, piece_seconds=9.0))
    with pytest.raises(UserError, match="--out is missing"):
        prepare(dataclasses.replace(prepared(recordings, networks, features), out=""))
    with pytest.raises(UserError, match="audio shards already"):
        prepare(prepared(features / "audio", "", tmp_path, captions=""))
    with pytest.raises(UserError, match="batch_size is 0"):
        prepared(recordings, networks, features, batch_size=0)
    shutil.copytree(networks, tmp_path / "networks")
    params, config, _ = release.load_network(networks, "vae")
    release.save_network(tmp_path / "networks", "vae", jax.tree.map(lambda x: x + 1, params), config, {})
    data = DataConfig(folder=(str(features),), networks=str(tmp_path / "networks"))
    with pytest.raises(UserError, match="another vae"):
        pipeline.check_provenance(data, "features")
    with pytest.raises(UserError, match="another hashes"):
        prepare(prepared(recordings, str(tmp_path / "networks"), features))


def audio_config(source: Path, out: Path, **changes: Any) -> PrepareConfig:
    base = PrepareConfig(
        source=str(source), out=str(out), piece_seconds=400.0, min_seconds=0.5, shard_recordings=8, beam=BEAM
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("odd")
    return folder, odd_files(folder, copies=2)


@pytest.fixture(scope="module")
def odd_shards(odd: Odd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("odd_shards")
    prepare(audio_config(odd[0], out))
    return out


def test_odd_files_are_all_accounted_for(odd: Odd, odd_shards: Path) -> None:
    wanted, manifest, source = odd[1], read_manifest(odd_shards), open_shards(odd_shards, "audio")
    assert rejects(odd_shards) == {name: reason for name, reason in wanted.items() if reason}
    used = Counter(decode_json(source[i]["meta"])["recording"] for i in range(len(source)))
    assert dict(used) == {
        name: 3 if "minutes" in name else 1 for name, reason in wanted.items() if not reason
    }
    assert manifest.counts["recordings"] == len(wanted)
    assert manifest.counts["recordings_used"] == len(used)
    assert manifest.counts["rejects"] == dict(Counter(reason for reason in wanted.values() if reason))
    rows = [json.loads(line) for line in (odd_shards / "rejects.jsonl").read_text().splitlines()]
    details = {row["recording"]: row["detail"] for row in rows}
    assert details["1 late copy.flac"] == "of 1 good.wav"
    assert details["0 cut.wav"].startswith("cut short")
    for i in range(len(source)):
        piece = audio.decode_flac(source[i]["audio"].tobytes())
        assert loudness.integrated(piece) == pytest.approx(-16, abs=1.0)


def test_the_result_does_not_depend_on_workers(odd: Odd, odd_shards: Path, tmp_path: Path) -> None:
    beam = (*BEAM, "direct_running_mode=multi_threading", "direct_num_workers=3")
    prepare(audio_config(odd[0], tmp_path, beam=beam))
    assert everything(tmp_path) == everything(odd_shards)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_and_run_again(
    odd: Odd, odd_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        sys.executable,
        "-c",
        "from melody_jax.cli import main; main()",
        "prepare",
        "--source",
        str(odd[0]),
    ]
    command += [
        "--out",
        str(tmp_path),
        "--piece_seconds",
        "400",
        "--min_seconds",
        "0.5",
        "--shard_recordings",
        "8",
    ]
    command += ["--beam", "direct_running_mode=multi_processing", "direct_num_workers=2"]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".work/inspected-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not read_manifest(tmp_path).finished
    with pytest.raises(UserError, match="unfinished"):
        open_shards(tmp_path)
    kept, again = len(list(tmp_path.glob(".work/inspected-*"))), []
    assert kept >= 1
    monkeypatch.setattr(
        audio_units,
        "cut_recording",
        lambda recording, config: again.append(recording) or cut_recording(recording, config),
    )
    prepare(audio_config(odd[0], tmp_path))
    assert len(again) <= len(odd[1]) - 8 * (kept - 1)
    assert everything(tmp_path) == everything(odd_shards)


def test_a_landmark_of_many_recordings_still_links_them() -> None:
    marks = [((0, i), 7, 20) for i in reversed(range(150))]
    assert len(list(beam_pipelines.landmark_pairs((5, marks[:100])))) == 100 * 99 // 2
    linked = [pair for pair, _ in beam_pipelines.landmark_pairs((5, marks))]
    assert linked == [((0, i), (0, i + 1)) for i in range(149)]


def test_a_full_disk_is_one_line(odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise UserError("shard: cannot be written (No space left on device)")

    monkeypatch.setattr("melody_jax.data.audio_units.write_shard", full)
    with pytest.raises(UserError, match=r"^shard: cannot be written \(No space left on device\)$"):
        prepare(audio_config(odd[0], tmp_path))


def test_a_network_with_more_channels_than_the_shards_is_refused(features: Path) -> None:
    folder = str(features / "audio")
    data = DataConfig(folder=(folder,), validation_folder=(folder,), crop_samples=960)
    with pytest.raises(UserError, match="24 kHz mono, and the network takes 48 kHz stereo; prepare"):
        pipeline.TrainingBatches(data, "audio", audio_format=AudioFormat(sample_rate=48_000, channels=2))


def test_an_interrupted_run_continues_from_a_bucket(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unfinished work is in the bucket, so that another machine goes on; recordings must be on a disk."""
    pytest.importorskip("fsspec", reason="the extra 'buckets' is not installed")
    out = "memory://prepare/shards"
    remote = RemoteFolder(out)
    settings: Any = {
        "source": str(recordings),
        "piece_seconds": 0.8,
        "min_seconds": 0.5,
        "shard_recordings": 2,
    }
    prepare(PrepareConfig(out=str(tmp_path / "local"), **settings))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv(object_store.CACHE_VARIABLE, str(tmp_path / "one"))
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(PrepareConfig(out=out, **settings))
    assert ".work/done-00000.json" in remote.sizes()
    monkeypatch.setenv(object_store.CACHE_VARIABLE, str(tmp_path / "two"))
    prepare(PrepareConfig(out=out, **settings))
    expected = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert {name: remote.read(name) for name in remote.sizes()} == expected
    with pytest.raises(UserError, match="recordings must be on a disk"):
        prepare(PrepareConfig(source="memory://prepare/recordings", out=out))
    with pytest.raises(UserError, match="workers of --beam share a folder"):
        prepare(PrepareConfig(source=str(recordings), out=out, beam=BEAM))
