"""Recordings for tests of the preparation, good and odd ones."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from melody_jax import audio


def music(seed: int, seconds: float, sample_rate: int = 24_000) -> np.ndarray:
    """Notes of random pitch, five a second: enough peaks for a fingerprint."""
    rng, time = np.random.default_rng(seed), np.arange(round(0.2 * sample_rate)) / sample_rate
    pitches = rng.uniform(200, 3000, (round(seconds * 5), 3))
    notes = np.sin(2 * np.pi * pitches[:, :, None] * time).sum(axis=1) * np.hanning(len(time))
    return (0.2 * notes.reshape(-1)).astype(np.float32)


def odd_files(folder: Path, copies: int = 1) -> dict[str, str]:
    """Files of every kind that goes wrong, and some that only look so -> what should become of each ("" is used)."""
    wanted: dict[str, str] = {}

    def add(name: str, reason: str, wave: Any = None, rate: int = 24_000, subtype: str = "PCM_16") -> Path:
        wanted[name] = reason
        if wave is not None:
            soundfile.write(folder / name, wave, rate, subtype=subtype)
        return folder / name

    for n in range(copies):
        good = music(1000 + n, 8.0)
        flac = audio.encode_flac(good)
        add(f"{n} good.wav", "", good)
        add(f"{n} zero bytes.wav", "unreadable").write_bytes(b"")
        add(f"{n} noise.mp3", "unreadable").write_bytes(np.random.default_rng(n).bytes(3000))
        add(f"{n} text.ogg", "unreadable").write_text("not music")
        add(f"{n} cut.flac", "unreadable").write_bytes(flac[: len(flac) // 2])
        add(f"{n} cut.wav", "unreadable").write_bytes((folder / f"{n} good.wav").read_bytes()[:30_000])
        add(f"{n} header only.wav", "unreadable").write_bytes((folder / f"{n} good.wav").read_bytes()[:44])
        add(f"{n} cover.jpg", "suffix").write_bytes(b"\xff\xd8")
        add(f"{n} flac inside.wav", "").write_bytes(audio.encode_flac(music(2000 + n, 2.0)))
        broken = music(3000 + n, 2.0)
        broken[40_000] = np.nan
        add(f"{n} nan.wav", "not finite", broken, subtype="FLOAT")
        add(f"{n} eight channels.wav", "", np.stack([music(4000 + n, 2.0)] * 8, axis=1))
        add(f"{n} 8 kHz.wav", "", music(5000 + n, 2.0, 8000), 8000)
        add(f"{n} silent.wav", "silence", np.zeros(48_000, np.float32))
        add(f"{n} clipped.wav", "clipped", np.clip(20 * music(6000 + n, 2.0), -1, 1))
        add(f"{n} short.wav", "short", music(7000 + n, 0.2))
        add(f"{n} empty.flac", "unreadable", np.zeros(0, np.float32))
        add(f"{n} quiet copy.wav", "duplicate", 0.1 * good)
        add(f"{n} resampled copy.ogg", "duplicate", audio.resample(good, 24_000, 44_100), 44_100, "VORBIS")
        add(f"{n} late copy.flac", "duplicate", good[6_000:])
    add("20 minutes at 1 kHz.wav", "", np.tile(music(8000, 20.0, 1000), 60), 1000)
    return wanted
