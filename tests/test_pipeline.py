"""Batches from shards: order, crops, windows, labels, positions, provenance."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melody_jax import audio, release
from melody_jax.composer import facts
from melody_jax.config import DataConfig
from melody_jax.data import pipeline
from melody_jax.data.feature_shape import FeatureShape
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError

GENRES = facts.TABLES["genre"][:2]


def write_folder(folder: Path, kind: str, records: list[dict[str, np.ndarray]], settings: Any = None) -> str:
    folder.mkdir(parents=True)
    half = -(-len(records) // 2)
    shards = [
        write_shard(folder / shard_name(kind, i, 2), records[i * half : (i + 1) * half]) for i in range(2)
    ]
    write_manifest(
        folder,
        ShardManifest(kind=kind, settings=settings or {}, versions={}, shard_count=2, shards=tuple(shards)),
    )
    return str(folder)


def audio_record(i: int, captions: bool = True) -> dict[str, np.ndarray]:
    """A ramp from -0.5 whose slope is the record's number: a crop tells whence it came."""
    samples = 4000 if i else 500
    wave = (np.arange(samples) * (i + 1) / 32768 - 0.5).astype(np.float32)
    composed_facts = {
        "genre": GENRES[i % 2],
        "mood": facts.TABLES["mood"][1],
        "mode": "minor",
        "key": "D#",
        "tempo_bpm": 120.5,
    }
    composed_facts["instruments"] = [facts.INSTRUMENT_NAMES[3], facts.INSTRUMENT_NAMES[0]]
    meta = {
        "id": f"r{i}",
        "facts": composed_facts if i % 3 else {},
        "captions": ["calm piano", "a slow song"] if captions else [],
    }
    return {"audio": np.frombuffer(audio.encode_flac(wave), np.uint8), "meta": encode_json(meta)}


def feature_record(i: int, tokens: int = 40) -> dict[str, np.ndarray]:
    starts = np.array([0, 8, 16, 24, 32], np.int32)
    prefixes = 100 * i + starts[:, None, None] + np.array([0, 1, 2])[None, :, None] + np.zeros((1, 1, 12))
    return {
        "meta": encode_json({"id": f"f{i}"}),
        "semantic_tokens": np.arange(tokens, dtype=np.int16),
        "latents": np.repeat(np.arange(2 * tokens, dtype=np.float16)[:, None], 3, axis=1),
        "prefix_tokens": prefixes.astype(np.int16),
        "window_starts": starts,
        "text_prefix_tokens": np.full((2, 12), 900 + i, np.int16),
    }


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_folder(
        tmp_path_factory.mktemp("data") / "audio", "audio", [audio_record(i) for i in range(12)]
    )


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "features"
    return write_folder(
        folder, "features", [feature_record(i) for i in range(6)], {"hashes": {"vae": "1" * 64}}
    )


def config(folder: str, **changes: Any) -> DataConfig:
    base = DataConfig(
        folder=(folder,), batch_size=4, crop_samples=1000, window_tokens=8, holdout=0.2, text_length=12
    )
    return dataclasses.replace(base, **changes)


def take(iterator: Any, count: int) -> list[Any]:
    return [next(iterator) for _ in range(count)]


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    else:
        np.testing.assert_array_equal(a, b)


def test_audio_crops(music: str) -> None:
    batches = take(pipeline.TrainingBatches(config(music), "audio"), 6)
    assert batches[0]["audio"].shape == (4, 1000)
    assert batches[0]["audio"].dtype == np.float32
    slopes = [
        np.round((wave[1] - wave[0]) * 32768).astype(int) for batch in batches for wave in batch["audio"]
    ]
    train = sorted(range(1, 11))  # the last two of twelve records are held out
    assert sorted(slopes[:10]) == train
    assert sorted(slopes[10:20]) == train
    assert slopes[:10] != slopes[10:20]


def test_batches_of_one(music: str) -> None:
    assert next(pipeline.TrainingBatches(config(music, batch_size=1), "audio"))["audio"].shape == (1, 1000)


def test_order_does_not_depend_on_threads_or_processes(music: str) -> None:
    one = take(pipeline.TrainingBatches(config(music, threads=1, prefetch=1), "audio_text"), 3)
    four = take(pipeline.TrainingBatches(config(music, threads=4, prefetch=8), "audio_text"), 3)
    halves = [take(pipeline.TrainingBatches(config(music), "audio_text", p, 2), 3) for p in range(2)]
    for a, b, *own in zip(one, four, *halves, strict=True):
        assert_same(a, b)
        np.testing.assert_array_equal(a["audio"], np.concatenate([half["audio"] for half in own]))


def test_position_is_restored(music: str) -> None:
    iterator = pipeline.TrainingBatches(config(music), "audio")
    take(iterator, 3)
    state = iterator.get_state()
    after = take(iterator, 3)
    again = pipeline.TrainingBatches(config(music), "audio")
    again.set_state(state)
    for a, b in zip(after, take(again, 3), strict=True):
        assert_same(a, b)


def test_labels(music: str) -> None:
    batch = next(pipeline.TrainingBatches(config(music, batch_size=10), "audio_text"))
    labels = batch["facts"]
    slopes = np.round((batch["audio"][:, 1] - batch["audio"][:, 0]) * 32768).astype(int) - 1
    for row, i in enumerate(slopes):
        if i % 3:
            assert labels["genre"][row] == i % 2
            assert labels["key"][row] == 3
            assert labels["tempo"][row] == np.float32(120.5)
            assert labels["instruments"][row].sum() == 2
        else:
            assert (
                labels["genre"][row] == labels["mood"][row] == labels["mode"][row] == labels["key"][row] == -1
            )
            assert np.isnan(labels["tempo"][row])
            assert np.all(labels["instruments"][row] == -1)
    assert batch["text_ids"].shape == batch["text_mask"].shape == (10, 12)
    assert (batch["text_ids"].dtype, batch["text_mask"].dtype) == (np.int32, np.float32)


def test_hard_negatives_share_a_genre(music: str) -> None:
    settings = config(music, hard_negative_group=2, batch_size=2)
    groups = [batch["facts"]["genre"] for batch in take(pipeline.TrainingBatches(settings, "audio_text"), 5)]
    assert (
        sum(group[0] == group[1] for group in groups) >= 3
    )  # 3 known of each genre, 4 unknown: at most 2 mixed pairs
    again = [batch["facts"]["genre"] for batch in take(pipeline.TrainingBatches(settings, "audio_text"), 5)]
    np.testing.assert_array_equal(groups, again)


def test_validation_is_fixed_and_apart(music: str) -> None:
    first = pipeline.validation_batches(config(music, seed=1), "audio", 2)
    assert_same(first[1], pipeline.validation_batches(config(music, seed=2), "audio", 2)[1])
    slopes = {int(np.round((wave[1] - wave[0]) * 32768)) for batch in first for wave in batch["audio"]}
    assert slopes == {11, 12}


def test_short_pieces_end_in_silence(music: str) -> None:
    batches = take(pipeline.TrainingBatches(config(music), "audio"), 3)
    short = next(w for b in batches for w in b["audio"] if round(float(w[1] - w[0]) * 32768) == 1)
    assert np.all(short[500:] == 0)


def test_feature_windows_agree(features: str) -> None:
    for batch in take(pipeline.TrainingBatches(config(features, jitter_probability=0.0), "features"), 4):
        start = batch["semantic_tokens"][:, 0]
        np.testing.assert_array_equal(batch["semantic_tokens"], start[:, None] + np.arange(8))
        np.testing.assert_array_equal(batch["latents"][..., 0], 2 * start[:, None] + np.arange(16))
        assert np.all(np.abs(batch["prefix_tokens"][:, 0] % 100 - start) <= 4)
        assert batch["prefix_tokens"].shape == (4, 12)
        assert batch["latents"].dtype == np.float32


def test_prefix_variants(features: str) -> None:
    noisy = next(
        pipeline.TrainingBatches(config(features, jitter_probability=1.0, batch_size=32), "features")
    )
    assert set(noisy["prefix_tokens"][:, 0] % 4) == {1, 2}
    text = next(pipeline.TrainingBatches(config(features, text_prefix_probability=1.0), "features"))
    assert np.all(text["prefix_tokens"] >= 900)
    held_out = pipeline.validation_batches(config(features, jitter_probability=1.0), "features", 1)[0]
    assert np.all(held_out["prefix_tokens"] % 4 == 0)


def test_refusals(music: str, features: str, tmp_path: Path) -> None:
    for message, settings, kind in (
        ("--data.folder", DataConfig(), "audio"),
        ("needed", config(features), "audio"),
        ("no such folder", config(str(tmp_path / "none")), "audio"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.TrainingBatches(settings, kind)
    with pytest.raises(UserError, match="window_tokens is 41"):
        pipeline.validation_batches(config(features, window_tokens=41), "features", 1)
    with pytest.raises(UserError, match="does not divide"):
        pipeline.TrainingBatches(config(music), "audio", 0, 3)
    bare = write_folder(tmp_path / "bare", "audio", [audio_record(i, captions=False) for i in range(4)])
    with pytest.raises(UserError, match="no caption"):
        pipeline.validation_batches(config(bare), "audio_text", 1)


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        ({"semantic_ids": 39}, "record 'f.' has semantic_tokens with the id 39, and .* ids 0 to 38"),
        ({"prefix_ids": 400}, "record 'f4' has prefix_tokens with the id 4.., and .* ids 0 to 399"),
        ({"prefix_levels": 8}, "prefix levels 12, and this stage's network needs 8"),
        ({"latent_channels": 16}, "latent channels 3, and .* needs 16"),
        ({"latents_per_token": 10}, "latents per token 2, and .* needs 10"),
        ({"window_tokens": 16}, "data.window_tokens: window tokens 8, and .* needs 16"),
    ],
)
def test_features_of_other_sizes_are_refused(features: str, needed: Any, message: str) -> None:
    fits = FeatureShape(
        semantic_ids=40,
        prefix_ids=1000,
        prefix_levels=12,
        latent_channels=3,
        latents_per_token=2,
        window_tokens=8,
    )
    settings = config(features, jitter_probability=0.0, batch_size=6)
    take(pipeline.TrainingBatches(settings, "features", shape=fits), 8)
    with pytest.raises(UserError, match=message):
        take(pipeline.TrainingBatches(settings, "features", shape=FeatureShape(**needed)), 8)


def test_sizes_in_the_manifest_are_compared(tmp_path: Path) -> None:
    settings = {"hashes": {}, "shapes": {"semantic_ids": 1024}}
    folder = write_folder(tmp_path / "f", "features", [feature_record(i) for i in range(4)], settings)
    with pytest.raises(UserError, match="semantic ids 1024, and this stage's network needs at most 64"):
        pipeline.TrainingBatches(config(folder), "features", shape=FeatureShape(semantic_ids=64))
    pipeline.TrainingBatches(config(folder), "features", shape=FeatureShape(semantic_ids=2048))


@pytest.mark.parametrize(
    "state", [{}, {"next_index": -1}, {"next_index": "3"}, {"next_index": 1, "x": 2}, [[]], None]
)
def test_foreign_positions_are_refused(music: str, state: Any) -> None:
    with pytest.raises(UserError, match="not a position in the data"):
        pipeline.TrainingBatches(config(music), "audio").set_state(state)


def test_provenance(music: str, features: str, tmp_path: Path) -> None:
    from melody_jax.models.vae import VAEConfig

    assert pipeline.check_provenance(config(music), "audio") == {}
    assert pipeline.check_provenance(config(features), "features") == {"vae": "1" * 64}
    release.save_network(tmp_path, "vae", {"a": np.zeros(3, np.float32)}, VAEConfig(), {})
    with pytest.raises(UserError, match="another vae"):
        pipeline.check_provenance(config(features, networks=str(tmp_path)), "features")
    other = write_folder(
        tmp_path / "o", "features", [feature_record(i) for i in range(2)], {"hashes": {"vae": "2" * 64}}
    )
    with pytest.raises(UserError, match="vae differs"):
        pipeline.check_provenance(config(features, validation_folder=(other,)), "features")
