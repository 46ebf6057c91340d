import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from melody_jax import audio, loudness
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError


def tone(seconds=1.0, frequency=997.0, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * 24000)) / 24000)).astype(
        np.float32
    )


@pytest.mark.parametrize(("suffix", "error"), [(".wav", 2e-5), (".flac", 2e-5), (".ogg", 0.05)])
def test_file_round_trip(tmp_path, suffix, error):
    path = tmp_path / f"a{suffix}"
    audio.write(path, tone())
    read = audio.read(path)
    assert read.dtype == np.float32
    assert read.shape == (24000,)
    assert np.abs(read - tone()).max() < error
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("peak", "warns"), [(1.0, False), (1.0005, False), (1.3, True), (-2.0, True)])
def test_clipping_is_said(tmp_path, peak, warns):
    wave = tone()
    wave[100] = peak
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audio.write(tmp_path / "a.wav", wave)
    expected = [f"{tmp_path / 'a.wav'}: its peak is {abs(peak):.3g}; what is beyond 1 is clipped"]
    assert [str(warning.message) for warning in caught] == (expected if warns else [])


def test_read_mixes_and_resamples(tmp_path):
    stereo = np.stack([np.full(48000, 0.25), np.full(48000, 0.75)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 48000)
    read = audio.read(tmp_path / "a.wav")
    assert read.shape == (24000,)
    np.testing.assert_allclose(read[2000:-2000], 0.5, atol=1e-3)


def test_read_refuses_bad_files(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        audio.read(tmp_path / "none.wav")
    with pytest.raises(UserError, match="is a folder"):
        audio.read(tmp_path)
    (tmp_path / "zero.wav").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        audio.read(tmp_path / "zero.wav")
    (tmp_path / "text.wav").write_text("not audio at all")
    with pytest.raises(UserError, match="not an audio file"):
        audio.read(tmp_path / "text.wav")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 24000)
    with pytest.raises(UserError, match="no audio"):
        audio.read(tmp_path / "silent.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.0]), 24000, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        audio.read(tmp_path / "nan.wav")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_read_refuses_cut_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    audio.write(path, tone() + 0.1 * np.random.default_rng(0).normal(size=24000).astype(np.float32))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut short|damaged"):
        audio.read(path)


@pytest.mark.parametrize(
    ("rate", "bit_rate"), [(44_100, 128_000), (48_000, 96_000), (48_000, 160_000), (24_000, 64_000)]
)
def test_layer_two_is_read_to_its_end(tmp_path, rate, bit_rate):
    """Whatever the file is called: with an Info frame, decoders read too little of it."""
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp3"
    wave = np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)
    with av.open(path, "w", format="mp2") as container:
        stream = container.add_stream("mp2", rate=rate, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray((9_000 * wave).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    read, _ = audio.read_as_stored(path)
    assert 3 * rate <= len(read) < 3 * rate + 2 * 1152
    assert np.abs(read[: rate // 10]).max() > 0.2
    assert np.abs(read[2 * rate : 3 * rate - 2304]).max() > 0.2


@pytest.mark.parametrize("bad", [np.zeros(0), np.zeros((2, 100)), np.array([0.0, np.inf])])
def test_write_refuses_bad_audio(tmp_path, bad):
    with pytest.raises(UserError, match="audio"):
        audio.write(tmp_path / "a.wav", bad)
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_bad_places(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        audio.write(tmp_path / "no" / "a.wav", tone())
    with pytest.raises(UserError, match="must end in"):
        audio.write(tmp_path / "a.mid", tone())
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        audio.write(tmp_path / "b.wav", tone())


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    audio.write(path, tone())
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        audio.write(path, tone(amplitude=0.1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_flac_bytes():
    signal = tone(2.0)
    data = audio.encode_flac(signal)
    assert data == audio.encode_flac(signal)
    decoded = audio.decode_flac(data)
    assert audio.encode_flac(decoded) == data
    assert audio.flac_info(data) == (48000, AudioFormat())
    assert str(audio.flac_info(audio.encode_flac(signal, 44_100))[1]) == "44.1 kHz mono"
    assert np.abs(decoded - signal).max() < 2e-5
    np.testing.assert_array_equal(audio.decode_flac(data, 12345, 5000), decoded[12345:17345])
    np.testing.assert_array_equal(audio.decode_flac(data, 40000), decoded[40000:])
    with pytest.raises(UserError, match="hold 48000 samples"):
        audio.decode_flac(data, 47000, 2000)
    with pytest.raises(UserError, match="cannot be decoded"):
        audio.decode_flac(b"foreign")
    with pytest.raises(UserError, match=r"cannot be decoded|cut short"):
        audio.decode_flac(data[: len(data) // 2], 40000)


def test_loudness_of_known_signals():
    """BS.1770: a full-scale sine at 997 Hz on one channel reads -3.01 LUFS; the gates drop silence."""
    sine = tone(5.0, amplitude=1.0)
    assert loudness.integrated(sine) == pytest.approx(-3.01, abs=0.05)
    assert loudness.integrated(0.1 * sine) == pytest.approx(-23.01, abs=0.05)
    assert loudness.integrated(np.concatenate([sine, np.zeros(240000, np.float32)])) == pytest.approx(
        -3.01, abs=0.3
    )
    assert loudness.integrated(tone(5.0, frequency=30.0)) < loudness.integrated(tone(5.0)) - 5
    assert loudness.integrated(np.zeros(48000, np.float32)) == -np.inf
    assert loudness.integrated(np.zeros(0, np.float32)) == -np.inf


def test_loudness_filters_match_scipy():
    signal_ = pytest.importorskip("scipy.signal")
    noise = np.random.default_rng(0).normal(size=72000) * np.repeat([0.02, 0.2, 0.1], 24000)
    shelf = loudness._shelf(1681.974450955533, 3.999843853973347, 0.7071752369554196, 24000)
    high_pass = loudness._high_pass(38.13547087602444, 0.5003270373238773, 24000)
    weighted = signal_.lfilter(*high_pass, signal_.lfilter(*shelf, noise))
    starts = range(0, 72000 - 9600 + 1, 2400)
    blocks = np.array([np.mean(weighted[s : s + 9600] ** 2) for s in starts])
    gated = blocks[blocks > np.mean(blocks) / 10]
    assert loudness.integrated(noise) == pytest.approx(-0.691 + 10 * np.log10(gated.mean()), abs=1e-3)


def test_shelf_is_the_standards_at_48k():
    numerator, denominator = loudness._shelf(1681.974450955533, 3.999843853973347, 0.7071752369554196, 48000)
    np.testing.assert_allclose(numerator, [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-9)
    np.testing.assert_allclose(denominator, [1.0, -1.69065929318241, 0.73248077421585], atol=1e-9)


def test_normalise_and_limit():
    noise = 0.01 * np.random.default_rng(0).normal(size=72000).astype(np.float32)
    noise[36000:36010] = 0.9
    loud = loudness.normalise(noise, -16.0)
    assert loudness.integrated(loud) == pytest.approx(-16.0, abs=0.01)
    assert np.abs(loud).max() > 1
    limited = loudness.peak_limit(loud, 0.98)
    assert np.abs(limited).max() <= 0.98
    np.testing.assert_allclose(limited[:35000], loud[:35000])
    np.testing.assert_allclose(limited[37000:], loud[37000:], rtol=1e-6)
    assert loudness.peak_limit(noise) is noise
    silence = np.zeros(24000, np.float32)
    np.testing.assert_array_equal(loudness.normalise(silence), silence)


def test_resample_refuses_bad_rates():
    with pytest.raises(UserError, match="positive"):
        audio.resample(tone(), 0)


def stereo_noise(samples: int = 24_000) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.2, (samples, 2)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_stereo_files_keep_their_channels_apart(tmp_path: Path, suffix: str) -> None:
    sound = stereo_noise().clip(-1, 1)
    sound[:, 1] = 0
    audio.write(tmp_path / f"left{suffix}", sound, 44_100)
    read = audio.read(tmp_path / f"left{suffix}", 44_100, channels=2)
    np.testing.assert_allclose(read[:, 0], sound[:, 0], atol=1 / 32768)
    assert not read[:, 1].any()
    np.testing.assert_allclose(
        audio.read(tmp_path / f"left{suffix}", 44_100), sound[:, 0] / 2, atol=1 / 32768
    )


@pytest.mark.parametrize("suffix", list(audio.FORMATS))
def test_a_tone_on_the_left_stays_there(tmp_path: Path, suffix: str) -> None:
    left = tone(2.0)
    audio.write(tmp_path / f"left{suffix}", np.stack([left, 0 * left], axis=1))
    read = audio.read(tmp_path / f"left{suffix}", channels=2).astype(float)
    energies = np.mean(read**2, axis=0)
    assert 10 * np.log10(energies[0] / max(energies[1], 1e-12)) > 60


def test_mono_files_fill_both_channels(tmp_path: Path) -> None:
    mono = stereo_noise()[:, 0].clip(-1, 1)
    audio.write(tmp_path / "mono.wav", mono)
    read = audio.read(tmp_path / "mono.wav", channels=2)
    assert read.shape == (24_000, 2)
    np.testing.assert_array_equal(read[:, 0], read[:, 1])
    with pytest.raises(UserError, match="channels is 3; it must be 1 or 2"):
        audio.read(tmp_path / "mono.wav", channels=3)


def test_channels_are_resampled_alike() -> None:
    sound = stereo_noise()
    both = audio.resample(sound, 24_000, 44_100)
    assert both.shape == (44_100, 2)
    for channel in (0, 1):
        np.testing.assert_allclose(
            both[:, channel], audio.resample(sound[:, channel], 24_000, 44_100), atol=1e-6
        )


def test_flac_bytes_of_two_channels() -> None:
    sound = stereo_noise().clip(-1, 1)
    flac = audio.encode_flac(sound, 48_000)
    np.testing.assert_allclose(audio.decode_flac(flac, 100, 50), sound[100:150], atol=1 / 32768)
    with pytest.raises(UserError, match=r"must be \(T,\) or \(T, 2\)"):
        audio.encode_flac(np.zeros((9, 3), np.float32))


def test_loudness_adds_the_channels() -> None:
    """BS.1770-4: -23 LUFS for a 1 kHz sine of -23 dBFS in both channels, 3.01 LU less in one (EBU Tech 3341)."""
    for rate in (24_000, 48_000):
        time = np.arange(5 * rate) / rate
        tone = (10 ** (-23 / 20) * np.sin(2 * np.pi * 1_000 * time)).astype(np.float32)
        assert loudness.integrated(np.stack([tone, tone], axis=1), rate) == pytest.approx(-23, abs=0.1)
        assert loudness.integrated(np.stack([tone, 0 * tone], axis=1), rate) == pytest.approx(-26.01, abs=0.1)
        assert loudness.integrated(tone, rate) == pytest.approx(-26.01, abs=0.1)


def test_the_limiter_keeps_the_image() -> None:
    """A peak in one channel lowers both by the same factor."""
    sound = 0.3 * np.ones((4_000, 2), np.float32)
    sound[2_000, 0] = 2.0
    limited = loudness.peak_limit(sound)
    assert np.abs(limited).max() <= loudness.CEILING
    gain = limited / sound
    np.testing.assert_allclose(gain[:, 0], gain[:, 1], rtol=1e-5)
    assert gain[2_000, 1] < 0.5
    assert gain[0, 0] == 1
