"""A run becomes a release: averaged weights, their statistics, and a model card."""

from pathlib import Path

import numpy as np
import pytest
from helpers.arrays import random_like

from melody_jax import audio, release
from melody_jax.config import DataConfig, TrainConfig
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError
from melody_jax.models.discriminators import TINY as TINY_DISCRIMINATOR
from melody_jax.models.vae import TINY as TINY_VAE
from melody_jax.object_store import RemoteFolder
from melody_jax.training.checkpoint import Checkpoints
from melody_jax.training.export import ExportConfig, export
from melody_jax.training.run_folder import write_run
from melody_jax.training.stages.vae import VAEStage
from melody_jax.training.state import create_state


@pytest.mark.usefixtures("bucket")
def test_export_releases_the_average(tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    waves = np.random.default_rng(0).normal(size=(6, 9600)).astype(np.float32) * 0.1
    records = [
        {"audio": np.frombuffer(audio.encode_flac(w), np.uint8), "meta": encode_json({"id": "x"})}
        for w in waves
    ]
    shard = write_shard(music / shard_name("audio", 0, 1), records)
    write_manifest(
        music, ShardManifest(kind="audio", settings={}, versions={}, shard_count=1, shards=(shard,))
    )
    config = TrainConfig(
        stage=VAEStage(model=TINY_VAE, discriminator=TINY_DISCRIMINATOR),
        data=DataConfig(folder=(str(music),), batch_size=2, crop_samples=4800),
        workdir=str(tmp_path / "run"),
    )
    state = random_like(lambda key: create_state(config, key))
    checkpoints = Checkpoints(tmp_path / "run", keep_last=1)
    checkpoints.save(state, {})
    checkpoints.close()
    write_run(tmp_path / "run", config, {})
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 2, "eval/loss": 1.5}\n{"step": 3, "loss": 1.0}\n[1]\n{"step": 4, "eval/lo'
    )
    export(ExportConfig(run=config.workdir, out=str(tmp_path / "release"), batches=3, licence="CC0"))
    export(ExportConfig(run=config.workdir, out="memory://bucket/release", batches=3, licence="CC0"))
    remote = RemoteFolder("memory://bucket/release")
    assert remote.read("vae.safetensors") == (tmp_path / "release" / "vae.safetensors").read_bytes()
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
