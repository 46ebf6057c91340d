"""Files that declare a wrong length, or none, are read in their true length, or refused in one line."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.recordings import music

from hostile import audio_files
from melody_jax import audio, audio_decoding
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.errors import InputWarning, UserError

FRAME = 1152 / 44_100
"""Seconds of an MP3 frame."""


def put(folder: Path, data: bytes, name: str = "a.wav") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def lengths(path: Path) -> tuple[float, float, float]:
    """Seconds of a file as read at once, as read in blocks, and as declared to other modules."""
    blocks = [len(block) / rate for block, rate in audio.stream(path, 2.0)]
    return len(audio.read(path)) / SAMPLE_RATE, sum(blocks), audio.seconds(path)


def assert_noise_then_tone(wave: np.ndarray) -> None:
    """The standard deviation of each half of `noise_then_tone(8.0, 44_100)`, at 24 kHz."""
    assert wave[: 3 * 24_000].std() == pytest.approx(0.1 * np.sqrt(24 / 44.1), rel=0.15)
    assert wave[5 * 24_000 : 7 * 24_000].std() == pytest.approx(0.001 / np.sqrt(2), rel=0.2)


@pytest.mark.parametrize("mode", ["VARIABLE", "AVERAGE", "CONSTANT"])
def test_mp3_without_a_table_has_its_true_length(tmp_path: Path, mode: str) -> None:
    data = audio_files.mp3(8.0, mode)
    path = put(tmp_path, audio_files.without_table(data))
    declared = soundfile.info(path).duration
    assert abs(declared - 8.0) > 1.5 * FRAME  # libsndfile's guess
    for seconds in lengths(path):
        assert seconds == pytest.approx(8.0, abs=2 * FRAME)
    assert_noise_then_tone(audio.read(path))
    assert lengths(put(tmp_path, data)) == (8.0, 8.0, 8.0)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_mp3_of_every_version_is_counted(tmp_path: Path, rate: int) -> None:
    data = audio_files.without_table(audio_files.mp3(4.0, rate=rate))
    for seconds in lengths(put(tmp_path, audio_files.with_id3(data) + b"TAG" + bytes(125))):
        assert seconds == pytest.approx(4.0, abs=2 * 1152 / rate)


def test_joined_mp3_files_are_read_to_the_end(tmp_path: Path) -> None:
    joined = audio_files.mp3(2.0) + audio_files.mp3(4.0)
    for seconds in lengths(put(tmp_path, joined)):
        assert seconds == pytest.approx(6.0, abs=4 * FRAME)


def test_mp3_that_is_cut_is_refused(tmp_path: Path) -> None:
    data = audio_files.mp3(4.0)
    for content in (data[: len(data) // 2], audio_files.with_declared_frames(data, 10_000)):
        with pytest.raises(UserError, match=r"cut short, \d+ of \d+ MPEG frames"):
            audio.read(put(tmp_path, content))
    shorter = put(tmp_path, audio_files.with_declared_frames(data, 20))
    assert lengths(shorter)[0] == pytest.approx(4.0, abs=2 * FRAME)


@pytest.mark.parametrize("declared", [0, 96_000])
def test_flac_of_a_pipe_has_its_true_length(tmp_path: Path, declared: int) -> None:
    path = put(tmp_path, audio_files.flac(8.0, declared))
    assert lengths(path) == (8.0, 8.0, 8.0)
    whole = audio.read(put(tmp_path, audio_files.flac(8.0), "b.flac"))
    np.testing.assert_array_equal(audio.read(path), whole)
    (part, _), *rest = audio.stream(path, start=3.0, end=5.0)
    assert not rest
    np.testing.assert_array_equal(part[:, 0], whole[72_000:120_000])


def test_flac_that_declares_too_much_is_refused(tmp_path: Path) -> None:
    for declared in (200_000, 5_000_000_000):
        with pytest.raises(UserError, match=rf"cut short, 192000 of {declared} samples"):
            audio.read(put(tmp_path, audio_files.flac(8.0, declared)))
    cut = audio_files.flac(8.0, 0)[:-1000]
    with pytest.raises(UserError, match="last FLAC frame is not complete"):
        audio.read(put(tmp_path, cut))


SIZE = 8 * 24_000 * 2
SIZES = {
    "sox to a pipe": {"riff": 0x7FFFF024, "data": 0x7FFFF000},
    "arecord to a pipe": {"riff": 0x80000024, "data": 0x80000000},
    "ffmpeg to a pipe": {"riff": 0xFFFFFFFF, "data": 0xFFFFFFFF},
    "zeros": {"riff": 0, "data": 0},
    "empty data chunk": {"riff": 36, "data": 0},
    "only the RIFF of a pipe": {"riff": 0x7FFFF024},
    "seven too much": {"riff": SIZE + 36 + 7},
    "the size of the file": {"riff": SIZE + 44},
    "no RIFF size": {"riff": 0},
    "a RIFF size that is too small": {"riff": 1000},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_wav_with_a_wrong_size_has_its_true_length(tmp_path: Path, sizes: dict[str, int]) -> None:
    path = put(tmp_path, audio_files.wav(8.0, **sizes))
    assert lengths(path) == (8.0, 8.0, 8.0)


def test_wav_that_is_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cut short, {SIZE} of {SIZE + 2} bytes of audio"):
        audio.read(put(tmp_path, audio_files.wav(8.0, data=SIZE + 2)))
    with pytest.raises(UserError, match=r"declares 1000 bytes of audio, but 383000 more"):
        audio.read(put(tmp_path, audio_files.wav(8.0, data=1000)))
    tagged = audio_files.wav(1.0, tail=b"LIST" + (100_000).to_bytes(4, "little") + bytes(100_000))
    assert lengths(put(tmp_path, tagged)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("file_format", "subtype"), [("AIFF", None), ("RF64", None), ("OGG", "VORBIS"), ("OGG", "OPUS")]
)
def test_cut_files_of_other_formats_are_refused(
    tmp_path: Path, file_format: str, subtype: str | None
) -> None:
    data = audio_files.encoded(audio_files.noise_then_tone(2.0), file_format, subtype=subtype)
    assert lengths(put(tmp_path, data)) == (2.0, 2.0, 2.0)
    with pytest.raises(UserError, match="cut short"):
        audio.read(put(tmp_path, data[: len(data) // 2]))


def test_joined_ogg_files_are_refused(tmp_path: Path) -> None:
    data = audio_files.encoded(audio_files.noise_then_tone(1.0), "OGG")
    with pytest.raises(UserError, match="2 Ogg streams, one after the other"):
        audio.read(put(tmp_path, data + data))


@pytest.mark.parametrize("rate", [1, 2, 999, 900_000])
def test_rates_that_no_recording_has_are_refused(tmp_path: Path, rate: int) -> None:
    path = put(tmp_path, audio_files.wav(1.0, declared_rate=rate))
    for read in (audio.read, audio.seconds):
        with pytest.raises(UserError, match=f"a sample rate of {rate} Hz; it must be 1000 to 768000"):
            read(path)


def test_what_is_decoded_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, audio_files.flac(8.0))
    monkeypatch.setattr(audio_decoding, "MAX_SAMPLES", 100_000)
    monkeypatch.setattr(audio_decoding, "CHUNK", 10_000)
    with pytest.raises(UserError, match="longer than the 100000 samples"):
        audio.read(path)
    assert sum(len(block) for block, _ in audio.stream(path, 2.0)) == 192_000
    eight = put(tmp_path, audio_files.encoded(np.zeros((20_000, 8)), "FLAC"))
    with pytest.raises(UserError, match="longer than the 12500 samples per channel"):
        audio.read(eight)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    for path in ("/dev/zero", tmp_path / "fifo.wav", tmp_path):
        with pytest.raises(UserError, match=r"not a regular file|is a folder"):
            audio.read(path)


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(audio_files.wav(1.0))
    assert len(audio.read(path)) == 24_000


def test_channels_that_cancel_are_said_and_one_is_used(tmp_path: Path) -> None:
    wave = music(0, 2.0)
    for data in (np.stack([wave, -wave], axis=1), np.stack([0.5 * wave, -0.52 * wave], axis=1)):
        soundfile.write(tmp_path / "a.wav", data, 24_000)
        with pytest.warns(InputWarning, match=r"a\.wav: its channels cancel each other"):
            read = audio.read(tmp_path / "a.wav")
        np.testing.assert_allclose(np.abs(read), np.abs(data[:, 1]), atol=1e-4)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, music(1, 2.0)], axis=1), 24_000)
    audio.read(tmp_path / "a.wav")  # no warning


@pytest.mark.parametrize("read", [audio.read, audio.read_as_stored])
def test_more_than_two_channels_are_said_and_mixed(read: Any, tmp_path: Path) -> None:
    wave = music(0, 2.0)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, 0 * wave, music(1, 2.0)], axis=1), 24_000)
    with pytest.warns(InputWarning, match=r"a\.wav: its 3 channels are mixed to one"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize("container", ["ipod", "adts"])
def test_aac_is_read(tmp_path: Path, container: str) -> None:
    pytest.importorskip("av", reason="AAC needs the extra aac")
    data = audio_files.aac(8.0, container)
    path = put(tmp_path, data, "a.m4a")
    for seconds in lengths(path):
        assert seconds == pytest.approx(8.0, abs=2048 / 44_100)
    assert_noise_then_tone(audio.read(path))
    with pytest.raises(UserError, match=r"a\.m4a: .*(damaged|cut short)"):
        audio.read(put(tmp_path, data[: len(data) // 2], "a.m4a"))
    part = b"".join(block.tobytes() for block, _ in audio.stream(put(tmp_path, data, "a.m4a"), 0.5, 1.0, 2.0))
    assert len(part) == 44_100 * 2 * 4


def test_aac_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"AAC audio; av is not installed; the extra 'aac' provides it"):
        audio.read(put(tmp_path, b"\0\0\0\x1cftypM4A \0\0\0\0", "a.m4a"))


def test_mp3_is_written(tmp_path: Path) -> None:
    wave = music(0, 2.0)
    audio.write(tmp_path / "a.mp3", wave)
    assert lengths(tmp_path / "a.mp3") == (2.0, 2.0, 2.0)
    assert np.abs(audio.read(tmp_path / "a.mp3") - wave).std() < 0.1 * wave.std()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp3"]
