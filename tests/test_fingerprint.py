"""Copies share landmarks at one offset; other music does not."""

import io

import numpy as np
import pytest
import soundfile

from melody_jax import audio
from melody_jax.data.fingerprint import audio_key, first_copies, is_copy, landmarks


def music(seed: int, seconds: float) -> np.ndarray:
    rng, time = np.random.default_rng(seed), np.arange(4800) / 24_000
    pitches = rng.uniform(200, 3000, (round(seconds * 5), 3))
    notes = np.sin(2 * np.pi * pitches[:, :, None] * time).sum(axis=1) * np.hanning(len(time))
    return (0.2 * notes.reshape(-1)).astype(np.float32)


def copies(one: np.ndarray, other: np.ndarray) -> bool:
    (hashes, times), (others, later) = landmarks(one), landmarks(other)
    _, i, j = np.intersect1d(hashes, others, return_indices=True)
    return len(i) > 0 and is_copy(later[j] - times[i], min(len(hashes), len(others)), 0.1)


def encoded(wave: np.ndarray, rate: int, file_format: str, subtype: str) -> np.ndarray:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.resample(wave, 24_000, rate), rate, format=file_format, subtype=subtype)
    return audio.resample(soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float32")[0], rate)


@pytest.mark.parametrize(
    "coding", [(44_100, "MP3", "MPEG_LAYER_III"), (48_000, "OGG", "OPUS"), (8_000, "WAV", "PCM_U8")]
)
def test_encoding_level_and_start_do_not_matter(coding: tuple[int, str, str]) -> None:
    original = music(0, 20.0)
    assert copies(original, encoded(0.3 * original[30_011:], *coding))


def test_other_music_is_no_copy() -> None:
    waves = [music(seed, 20.0) for seed in range(6)]
    assert not any(copies(a, b) for i, a in enumerate(waves) for b in waves[:i])
    assert copies(waves[0], np.concatenate([waves[1][:100_000], waves[0]]))


def test_landmarks_do_not_depend_on_level_and_end_with_the_sound() -> None:
    wave = music(0, 4.0)
    for ours, theirs in zip(landmarks(wave), landmarks(0.125 * wave), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [len(marks) for marks in landmarks(wave[:100])] == [0, 0]
    assert len(landmarks(np.zeros(48_000, np.float32))[0]) == 0
    assert audio_key(wave) == audio_key(wave.copy()) != audio_key(wave[1:])
    assert audio_key(wave) > landmarks(wave)[0].max()


def test_first_copies_follow_chains() -> None:
    a, b, c, d = (0, 0), (0, 3), (1, 0), (2, 5)
    assert first_copies([(b, c), (a, b), (c, d)]) == {b: a, c: a, d: a}
    assert first_copies([(a, d), (b, d)]) == {b: a, d: a}
    assert first_copies([]) == {}
