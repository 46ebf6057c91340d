"""A recording cut into pieces: lengths, levels, what is refused, and which part a caption is about."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from melody_jax import audio, loudness
from melody_jax.data.cutting import cut_recording
from melody_jax.data.layouts import Recording
from melody_jax.data.prepare_config import PieceConfig
from melody_jax.data.records import decode_json
from melody_jax.errors import UserError
from melody_jax.loudness import clipped_share

CONFIG = PieceConfig(piece_seconds=2.0, min_seconds=0.5, duplicate_share=2.0)


def noise(seconds: float, rate: int = 24_000) -> np.ndarray:
    return (0.05 * np.random.default_rng(0).normal(size=round(seconds * rate))).astype(np.float32)


def recording(path: Path, wave: np.ndarray, rate: int = 24_000, **fields: object) -> Recording:
    soundfile.write(path, wave, rate, subtype="FLOAT")
    return Recording(id=path.name, path=str(path), size=1, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "pieces"), [(1.9, [1.9]), (4.0, [2, 2]), (4.9, [2, 2.9]), (5.1, [2, 2, 1.1])]
)
def test_nothing_is_dropped(tmp_path: Path, seconds: float, pieces: list[float]) -> None:
    cut_result = cut_recording(recording(tmp_path / "a.wav", noise(seconds, 44_100), 44_100), CONFIG)
    waves = [audio.decode_flac(record["audio"].tobytes()) for record in cut_result.records]
    assert [len(wave) for wave in waves] == [pytest.approx(24_000 * length, abs=1) for length in pieces]
    assert cut_result.seconds == pytest.approx(seconds, abs=1e-3)
    metas = [decode_json(record["meta"]) for record in cut_result.records]
    assert [meta["id"] for meta in metas] == [f"a.wav#{i}" for i in range(len(pieces))]
    assert [meta["seconds"][0] for meta in metas] == [2.0 * i for i in range(len(pieces))]
    assert all(loudness.integrated(wave) == pytest.approx(-16, abs=0.5) for wave in waves)


def test_silence_and_clipping_cost_a_piece_only(tmp_path: Path) -> None:
    wave = noise(8.0)
    wave[48_000:96_000] = 0
    wave[96_000:144_000] = np.clip(100 * wave[96_000:144_000], -1, 1)
    cut_result = cut_recording(recording(tmp_path / "a.wav", wave), CONFIG)
    assert [decode_json(record["meta"])["seconds"] for record in cut_result.records] == [
        [0.0, 2.0],
        [6.0, 8.0],
    ]
    assert [(row["reason"], row["seconds"]) for row in cut_result.rejects] == [
        ("silence", [2.0, 4.0]),
        ("clipped", [4.0, 6.0]),
    ]


def test_clipped_share() -> None:
    block = np.zeros((100, 2), np.float32)
    block[10:12, 0] = 1.0
    assert clipped_share(block) == 0
    block[20:24, 1] = -1.0
    assert clipped_share(block) == pytest.approx(0.04)


def test_quiet_music_is_turned_up_within_limits(tmp_path: Path) -> None:
    cut_result = cut_recording(recording(tmp_path / "a.wav", 3e-2 * noise(2.0)), CONFIG)
    assert not cut_result.rejects
    quiet = cut_recording(
        recording(tmp_path / "b.wav", 3e-2 * noise(2.0)), PieceConfig(max_gain_db=6.0, min_seconds=0.5)
    )
    gained = audio.decode_flac(quiet.records[0]["audio"].tobytes())
    assert loudness.integrated(gained) == pytest.approx(loudness.integrated(3e-2 * noise(2.0)) + 6, abs=0.2)


def test_a_video_is_cut_to_its_clip(tmp_path: Path) -> None:
    wave = noise(9.0)
    wave[72_000:120_000] += 0.2 * np.sin(np.arange(48_000) / 10).astype(np.float32)
    video = cut_recording(recording(tmp_path / "video.wav", wave, clip=(3.0, 5.0)), CONFIG)
    clip = cut_recording(recording(tmp_path / "clip.wav", wave[72_000:120_000], clip=(3.0, 5.0)), CONFIG)
    np.testing.assert_array_equal(video.records[0]["audio"], clip.records[0]["audio"])
    neither = cut_recording(recording(tmp_path / "neither.wav", wave[:84_000], clip=(3.0, 5.0)), CONFIG)
    assert [row["reason"] for row in neither.rejects] == ["unreadable"]
    assert "neither the clip 3-5 s nor its video" in neither.rejects[0]["detail"]


def test_damage_near_the_end_refuses_the_whole(tmp_path: Path) -> None:
    wave = noise(6.0)
    wave[-1] = np.inf
    cut_result = cut_recording(recording(tmp_path / "a.wav", wave), CONFIG)
    assert (cut_result.records, [row["reason"] for row in cut_result.rejects]) == ([], ["not finite"])


def test_lengths_must_be_positive() -> None:
    with pytest.raises(UserError, match="--piece_seconds is 0"):
        PieceConfig(piece_seconds=0.0)
