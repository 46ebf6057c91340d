"""Sources, stitching, feature shards from tiny networks, resuming, and export of a run."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax import audio, release
from melody_jax.config import DataConfig, TrainConfig
from melody_jax.data import pipeline
from melody_jax.data.prepare import PrepareConfig, prepare, starts, stitch
from melody_jax.data.records import (
    Manifest,
    decode_json,
    encode_json,
    open_shards,
    read_manifest,
    shard_name,
    write_manifest,
    write_shard,
)
from melody_jax.data.sources import open_source, read_captions
from melody_jax.errors import UserError
from melody_jax.models import mulan, tokenizer, vae
from melody_jax.models.conformer import ConformerConfig
from melody_jax.models.discriminators import TINY as TINY_DISCRIMINATOR
from melody_jax.models.mulan import TINY as TINY_MULAN
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.models.vae import TINY as TINY_VAE
from melody_jax.training.checkpoint import Checkpoints, write_run
from melody_jax.training.export import ExportConfig, export
from melody_jax.training.stages.vae import VAEStage
from melody_jax.training.state import create_state

TINY_TOKENIZER = TokenizerConfig(
    encoder=ConformerConfig(layers=1, width=16, heads=2, ffn=32, kernel=3, layer=1), semantic_vocab=16
)


def test_starts_cover_everything() -> None:
    assert starts(750, 256, 128) == [0, 128, 256, 384, 494]
    assert starts(256, 256, 64) == [0]
    assert starts(512, 256, 128) == [0, 128, 256]


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("length", [8, 13, 16, 27])
def test_stitch_takes_centres(length: int, rate: int) -> None:
    at, window = starts(length, 8, 4), 8
    rows = np.stack([np.arange(a * rate, (a + window) * rate) for a in at])
    np.testing.assert_array_equal(stitch(rows, at, length), np.arange(length * rate))
    marked = stitch(np.stack([np.full(window, a) for a in at]), at, length)
    for position, start in enumerate(marked):
        distances = [abs(position + 0.5 - a - window / 2) for a in at]
        assert abs(position + 0.5 - start - window / 2) <= min(distances) + 1


def tone(path: Path, seconds: float, pitch: float, sample_rate: int = 24_000) -> None:
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    audio.write(path, (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32), sample_rate)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for i, seconds in enumerate((1.6, 0.9, 1.3)):
        tone(folder / f"{i}.wav", seconds, 220.0 * (i + 1))
    tone(folder / "short.wav", 0.2, 100.0)
    (folder / "torn.wav").write_bytes((folder / "0.wav").read_bytes()[:1000])
    return folder


@pytest.fixture
def files(recordings: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recordings, tmp_path / "files"))


def captions(path: Path, rows: list[tuple[str, str]]) -> str:
    if path.suffix == ".csv":
        path.write_text("file,caption\n" + "".join(f'{file},"{caption}"\n' for file, caption in rows))
    else:
        path.write_text("".join(json.dumps({"file": f, "caption": c}) + "\n" for f, c in rows))
    return str(path)


ROWS = [("0.wav", "calm, slow piano"), ("0.wav", "soft"), ("1.wav", "loud"), ("2.wav", "fast")]
ROWS += [("short.wav", "tiny"), ("torn.wav", "torn")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_captions_are_matched(files: Path, suffix: str) -> None:
    source = open_source(files, captions(files / f"c{suffix}", ROWS))
    assert len(source) == 5
    wave, meta = source.read(0)
    assert wave.shape == (38_400,)
    assert meta == {"id": "0.wav", "facts": {}, "captions": ["calm, slow piano", "soft"]}


def test_mismatches_name_the_first(files: Path) -> None:
    with pytest.raises(UserError, match=r"the first is gone\.wav"):
        open_source(files, captions(files / "c.csv", [*ROWS, ("gone.wav", "x")]))
    with pytest.raises(UserError, match=r"have no caption .* the first is 2\.wav"):
        open_source(files, captions(files / "c.csv", ROWS[:3]))
    (files / "d.csv").write_text("path,text\na,b\n")
    with pytest.raises(UserError, match="no column 'file'"):
        read_captions(files / "d.csv")
    (files / "d.jsonl").write_text('{"file": "a", "caption": "b"}\n{"file": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_captions(files / "d.jsonl")
    (files / "none").mkdir()
    with pytest.raises(UserError, match="holds no audio files"):
        open_source(files / "none")


def random_like(init: Any) -> Any:
    """Random arrays of the shapes that `init(key)` has, without compiling it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("networks")
    key = jax.random.key(0)
    model = TINY_MULAN
    params = random_like(lambda k: mulan.init(model, k)) | {
        "music_mean": jnp.zeros(model.embedding),
        "text_mean": jnp.zeros(model.embedding),
        "codebooks": jax.random.normal(key, (model.levels, model.codes, model.embedding)),
    }
    release.save_network(folder, "mulan", params, model, {})
    width = TINY_TOKENIZER.feature_width
    params = random_like(lambda k: tokenizer.init(TINY_TOKENIZER, k)) | {
        "feature_mean": jnp.zeros(width),
        "feature_scale": jnp.ones(width),
        "codebook": jax.random.normal(key, (16, width)),
    }
    release.save_network(folder, "tokenizer", params, TINY_TOKENIZER, {})
    params = random_like(lambda k: vae.init(TINY_VAE, k))
    params |= {"latent_mean": jnp.zeros(8), "latent_scale": jnp.ones(8)}
    release.save_network(folder, "vae", params, TINY_VAE, {})
    return str(folder)


@pytest.fixture(scope="module")
def features(recordings: Path, networks: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    prepare(prepared(recordings, networks, out))
    return out


def prepared(files: Path, networks: str, out: Path, **changes: Any) -> PrepareConfig:
    base = PrepareConfig(
        source=str(files),
        captions=captions(files / "c.csv", ROWS),
        networks=networks,
        out=str(out),
        window_tokens=16,
        hop_tokens=4,
        variants=3,
        shard_records=2,
        batch_size=4,
    )
    return dataclasses.replace(base, **changes)


def test_features_and_rejects(features: Path, networks: str) -> None:
    manifest = read_manifest(features)
    assert (manifest.records, manifest.shard_count, manifest.finished) == (3, 3, True)
    assert manifest.settings["hashes"]["vae"] == release.network_hash(networks, "vae")
    first = open_shards(features, "features")[0]
    assert first["semantic_tokens"].shape == (40,)
    assert first["latents"].shape == (40, 8)
    assert first["latents"].dtype == np.float16
    np.testing.assert_array_equal(first["window_starts"], [0, 4, 8, 12, 16, 20, 24])
    assert first["prefix_tokens"].shape == (7, 3, 12)
    assert first["text_prefix_tokens"].shape == (2, 12)
    assert decode_json(first["meta"])["id"] == "0.wav"
    rejects = [json.loads(line) for line in (features / "rejects.jsonl").read_text().splitlines()]
    assert [row["piece"] for row in rejects] == ["short.wav", "torn.wav"]
    data = DataConfig(folder=(str(features),), window_tokens=16, batch_size=2, networks=networks)
    assert set(pipeline.check_provenance(data, "features")) == {"mulan", "tokenizer", "vae"}
    assert next(pipeline.TrainingBatches(data, "features"))["latents"].shape == (2, 16, 8)


def test_features_are_those_of_the_networks(features: Path, recordings: Path, networks: str) -> None:
    record = open_shards(features, "features")[0]
    wave = jnp.asarray(audio.read(recordings / "0.wav")[None, : 16 * 960])
    params, config, _ = release.load_network(networks, "vae")
    latents = jax.jit(vae.encode, static_argnums=1)(params, config, wave)
    np.testing.assert_allclose(record["latents"][:12], latents[0, :12], atol=2e-3)
    params, config, _ = release.load_network(networks, "mulan")
    codes = mulan.quantise(params, config, jax.jit(mulan.embed_music, static_argnums=1)(params, config, wave))
    np.testing.assert_array_equal(record["prefix_tokens"][0, 0], codes[0])


def test_resume_makes_the_missing_shard_again(features: Path, files: Path, networks: str, tmp_path: Path) -> None:
    out, whole = Path(shutil.copytree(features, tmp_path / "out")), read_manifest(features)
    listed = json.loads((out / "manifest.json").read_text())
    listed["shards"] = [shard for shard in listed["shards"] if "00001-of" not in shard["name"]]
    (out / "manifest.json").write_text(json.dumps(listed))
    (out / shard_name("features", 1, 3)).unlink()
    again = prepare(prepared(files, networks, out))
    assert {s.sha256 for s in again.shards} == {s.sha256 for s in whole.shards}
    assert len((out / "rejects.jsonl").read_text().splitlines()) == 2


def test_another_preparation_is_refused(features: Path, files: Path, networks: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another jitter"):
        prepare(prepared(files, networks, features, jitter=0.5))
    with pytest.raises(UserError, match="--out is missing"):
        prepare(dataclasses.replace(prepared(files, networks, features), out=""))
    shutil.copytree(networks, tmp_path / "networks")
    params, config, _ = release.load_network(networks, "vae")
    release.save_network(tmp_path / "networks", "vae", jax.tree.map(lambda x: x + 1, params), config, {})
    data = DataConfig(folder=(str(features),), networks=str(tmp_path / "networks"))
    with pytest.raises(UserError, match="another vae"):
        pipeline.check_provenance(data, "features")
    with pytest.raises(UserError, match="another hashes"):
        prepare(prepared(files, str(tmp_path / "networks"), features))


def test_export_releases_the_average(tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    waves = np.random.default_rng(0).normal(size=(6, 9600)).astype(np.float32) * 0.1
    records = [
        {"audio": np.frombuffer(audio.encode_flac(w), np.uint8), "meta": encode_json({"id": "x"})} for w in waves
    ]
    shard = write_shard(music / shard_name("audio", 0, 1), records)
    write_manifest(music, Manifest(kind="audio", settings={}, versions={}, shard_count=1, shards=(shard,)))
    config = TrainConfig(
        stage=VAEStage(model=TINY_VAE, discriminator=TINY_DISCRIMINATOR),
        data=DataConfig(folder=(str(music),), batch_size=2, crop_samples=4800),
        workdir=str(tmp_path / "run"),
    )
    state = random_like(lambda key: create_state(config, key))
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state, {})
    checkpoints.close()
    write_run(tmp_path / "run", config, {})
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 2, "eval/loss": 1.5}\n{"step": 3, "loss": 1.0}\n')
    export(ExportConfig(run=config.workdir, out=str(tmp_path / "release"), batches=3, licence="CC0"))
    card = (tmp_path / "release" / "vae.md").read_text()
    for words in (
        "# Model card: vae",
        "CC0",
        f"`{music}`: 6 records of audio",
        "| eval/loss | 1.5 |",
        '"crop_samples": 4800',
    ):
        assert words in card
    params, model, hashes = release.load_network(tmp_path / "release", "vae")
    assert (model, hashes) == (TINY_VAE, {})
    assert release.read_description(tmp_path / "release", "vae")["metrics"] == {"step": 2, "eval/loss": 1.5}
    assert not np.allclose(params["latent_scale"], state.ema["latent_scale"])
    kept = release.flatten(params)
    for name, value in release.flatten(state.ema).items():
        if not name.startswith("latent_"):
            np.testing.assert_allclose(kept[name], value, atol=float(np.max(np.abs(value))) / 200 + 1e-6)
    with pytest.raises(UserError, match="not a run folder"):
        export(ExportConfig(run=str(tmp_path), out=str(tmp_path / "release")))
    write_run(tmp_path / "run", config, {"vae": "0" * 64})
    with pytest.raises(UserError, match="another vae"):
        export(ExportConfig(run=config.workdir, out=str(tmp_path / "release")))
