"""Chunks of clips: equal for any number of processes, measured once, and in bounded memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.errors import UserError
from melody_jax.evaluation import embed_clips as measuring
from melody_jax.evaluation.clips import Clip, ClipSet
from melody_jax.evaluation.embed_clips import Share, measure
from melody_jax.evaluation.sound import Sound


class Levels:
    """An embedding that counts its calls."""

    name = sha256 = "levels"
    audio_format = DEFAULT_FORMAT

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.stack([waves.mean(axis=1), waves.std(axis=1)], axis=1)


def clips(count: int, seconds: float = 2.0) -> ClipSet:
    def read(i: int) -> Sound:
        count = round((seconds + i % 2) * 24_000)
        return Sound(np.random.default_rng(i).normal(0, 0.1, count).astype(np.float32))

    return ClipSet(
        where="x", sha256="x", clips=[Clip(name=str(i), read=lambda i=i: read(i)) for i in range(count)]
    )


def test_processes_share_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CHUNK", 4)
    alone = measure(clips(10), Levels(), Share(cache=tmp_path / "a", seconds=2.5))
    assert alone is not None
    assert list(alone.clip) == list(range(10))
    names = {"loudness_lufs", "peak_dbfs", "clipped", "silent", "longest_silence", "flatness", "steady_bass"}
    assert set(alone.signal) == names
    for i in (0, 1):  # a short one whole, a long one cut
        wave = clips(10).clips[i].read().samples[:60_000]
        np.testing.assert_allclose(alone.embeddings[i], [wave.mean(), wave.std()], rtol=1e-4, atol=1e-7)
    shares = [Share(cache=tmp_path / "b", seconds=2.5, process=i, processes=2) for i in range(2)]
    assert measure(clips(10), Levels(), shares[1]) is None  # the other's chunks are missing
    together = measure(clips(10), Levels(), shares[0])
    assert together is not None
    np.testing.assert_array_equal(together.embeddings, alone.embeddings)
    np.testing.assert_array_equal(together.signal["flatness"], alone.signal["flatness"])


def test_stereo_is_measured_and_embedded_as_it_is(tmp_path: Path) -> None:
    """Two stereo clips at 48 kHz and a mono one at 24 kHz, through an embedding that takes 32 kHz stereo."""
    shapes = []

    class Image(Levels):
        audio_format = AudioFormat(sample_rate=32_000, channels=2)

        def __call__(self, waves: np.ndarray) -> np.ndarray:
            shapes.append(waves.shape)
            return np.abs(waves).mean(axis=1)

    noise = np.random.default_rng(0).normal(0, 0.1, 96_000).astype(np.float32)
    sides = [np.stack([noise, gain * noise], axis=1) for gain in (0.5, 1.0)]
    sounds = [Sound(one, AudioFormat(sample_rate=48_000, channels=2)) for one in sides]
    sounds.append(Sound(noise[:48_000]))
    names = [Clip(name=str(i), read=lambda sound=sound: sound) for i, sound in enumerate(sounds)]
    rows = measure(ClipSet(where="x", sha256="x", clips=names), Image(), Share(cache=tmp_path))
    assert rows is not None
    assert {shape[1:] for shape in shapes} == {(64_000, 2)}
    left, right = rows.embeddings.T
    np.testing.assert_allclose(right / left, [0.5, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(rows.signal["balance_db"], [20 * np.log10(2), 0, np.nan], atol=1e-4)
    assert rows.signal["width_db"][1] == -100


def test_chunks_are_measured_once(tmp_path: Path) -> None:
    embedding = Levels()
    share = Share(cache=tmp_path)
    first = measure(clips(5), embedding, share)
    calls = embedding.calls
    second = measure(clips(5), embedding, share)
    assert first is not None
    assert second is not None
    assert embedding.calls == calls
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    (file,) = tmp_path.rglob("*.npz")
    measure(clips(5), embedding, Share(cache=tmp_path, seconds=2.0))
    assert embedding.calls > calls
    file.write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged; delete it"):
        measure(clips(5), embedding, share)


def test_memory_does_not_grow_with_the_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CHUNK", 8)
    monkeypatch.setattr(measuring.signal, "signal_metrics", lambda wave: {"flatness": 0.0})
    peaks = []
    measure(clips(8), Levels(), Share(cache=tmp_path / "0"))
    for count in (16, 64):
        tracemalloc.start()
        measure(clips(count), Levels(), Share(cache=tmp_path / str(count)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # 48 clips of sound would be 11 MB


def test_short_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no clip can be measured; the first, 0: 1\.00 s; a clip must have 2 s"
    ):
        measure(clips(1, 1.0), Levels(), Share(cache=tmp_path))
