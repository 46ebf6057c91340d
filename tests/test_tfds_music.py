"""Audio shards as a TFDS dataset, and a TFDS dataset as a source, both without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from melody_jax import audio
from melody_jax.data import tfds_music
from melody_jax.data.cutting import cut_recording
from melody_jax.data.prepare_config import PieceConfig
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:label\\(\\) is deprecated")  # TFDS calls protobuf so


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    return [0.1 * np.random.default_rng(i).normal(size=24_000 + i).astype(np.float32) for i in range(3)]


@pytest.fixture(scope="module")
def folder(waves: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    shards = tmp_path_factory.mktemp("shards")
    records = [
        {
            "audio": np.frombuffer(audio.encode_flac(wave), np.uint8),
            "meta": encode_json({"id": f"é{i}", "captions": ["calm", "slow"][:i]}),
        }
        for i, wave in enumerate(waves)
    ]
    shard = write_shard(shards / shard_name("audio", 0, 1), records)
    write_manifest(
        shards, ShardManifest(kind="audio", settings={}, versions={}, shard_count=1, shards=(shard,))
    )
    tfds_music.MelodyMusic(shards=shards, data_dir=str(shards / "tfds")).download_and_prepare()
    return shards / "tfds"


def test_tfds_reads_what_was_written(folder: Path, waves: list[np.ndarray]) -> None:
    source = tfds.data_source("melody_music", data_dir=str(folder), split="train")
    examples = {example["id"].decode(): example for example in (source[i] for i in range(len(source)))}
    assert set(examples) == {"é0", "é1", "é2"}
    assert [list(examples[f"é{i}"]["captions"]) for i in range(3)] == [[], [b"calm"], [b"calm", b"slow"]]
    for i, wave in enumerate(waves):
        np.testing.assert_allclose(examples[f"é{i}"]["audio"] / 32768, wave, atol=1 / 65536 + 1e-7)


def test_a_dataset_is_a_source(folder: Path, waves: list[np.ndarray]) -> None:
    prepared = tfds_music.recordings(folder / "melody_music" / "1.0.0")
    assert sorted(recording.id for recording in prepared) == ["é0", "é1", "é2"]
    for recording in prepared:
        wave = waves[int(recording.id[1:])]
        np.testing.assert_allclose(
            tfds_music.read(recording.path, recording.record), wave, atol=1 / 65536 + 1e-7
        )
        cut_result = cut_recording(recording, PieceConfig(piece_seconds=0.4, min_seconds=0.1))
        assert cut_result.seconds == pytest.approx(len(wave) / 24_000)
        assert len(cut_result.records) == 3
    with pytest.raises(UserError, match="not a TFDS dataset"):
        tfds_music.recordings(folder)


def test_no_tensorflow_and_no_beam_at_read_time(folder: Path) -> None:
    program = f"""
import sys
from melody_jax.data import tfds_music
assert len(tfds_music.read({str(folder / "melody_music" / "1.0.0")!r}, 0)) >= 24_000
assert not {{"tensorflow", "apache_beam"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
