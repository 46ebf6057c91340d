"""Which copies of a recording does its fingerprint detect, and does it ever confuse two recordings?

    melody compose --out corpus/bench --hours 1 --soundfonts none
    python benchmarks/fingerprint.py --corpus corpus/bench

Writes docs/evaluation/fingerprint.md. A copy is detected if at least `duplicate_share` of the landmarks
agree.
"""

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import tyro

from melody_jax import audio
from melody_jax.data.fingerprint import MIN_MATCHES, landmarks, matching_landmarks
from melody_jax.data.prepare_config import PieceConfig
from melody_jax.data.records import open_shards

ROOT = Path(__file__).parents[1]
Marks = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Arguments:
    """Compares pieces with their copies and with each other."""

    corpus: Path
    """Audio shards of different pieces of 30 s."""
    copied: int = 30
    """Number of pieces that are copied."""
    out: Path = ROOT / "docs" / "evaluation" / "fingerprint.md"
    """File of the table."""


def encoded(wave: np.ndarray, rate: int, file_format: str, subtype: str) -> np.ndarray:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.resample(wave, 24_000, rate), rate, format=file_format, subtype=subtype)
    return audio.resample(soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float32")[0], rate)


def noisy(wave: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=wave.shape) * np.sqrt(np.mean(wave**2)) * 0.1
    return (wave + noise).astype(np.float32)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "20 dB quieter": lambda wave: 0.1 * wave,
    "MP3, 44.1 kHz": lambda wave: encoded(wave, 44_100, "MP3", "MPEG_LAYER_III"),
    "Opus, 48 kHz": lambda wave: encoded(wave, 48_000, "OGG", "OPUS"),
    "8 kHz": lambda wave: encoded(wave, 8_000, "WAV", "PCM_16"),
    "starts 5.013 s later": lambda wave: wave[120_312:],
    "starts 16 ms later, MP3": lambda wave: encoded(wave[384:], 44_100, "MP3", "MPEG_LAYER_III"),
    "8 s from the middle": lambda wave: wave[264_101:456_101],
    "with noise, 20 dB below": noisy,
    "2 % faster": lambda wave: audio.resample(wave, 24_000, 23_520),
}


def agreement(one: Marks, other: Marks) -> float:
    """The share of landmarks that agree; 0 if there are too few."""
    _, i, j = np.intersect1d(one[0], other[0], return_indices=True)
    if len(i) == 0:
        return 0.0
    matches = matching_landmarks(other[1][j] - one[1][i])
    return matches / min(len(one[0]), len(other[0])) if matches >= MIN_MATCHES else 0.0


def main(arguments: Arguments) -> None:
    source = open_shards(arguments.corpus, "audio")
    threshold = PieceConfig().duplicate_share
    waves = [audio.decode_flac(source[i]["audio"].tobytes()) for i in range(len(source))]
    marks = [landmarks(wave) for wave in waves]
    different = [agreement(one, other) for one, other in itertools.combinations(marks, 2)]
    lines = [
        "# Fingerprints",
        "",
        f"`benchmarks/fingerprint.py`: {len(waves)} composed pieces of 30 s, {np.mean([len(m[0]) for m in marks]):.0f} "
        f"landmarks each. Of {len(different)} pairs of different pieces {sum(s >= threshold for s in different)} were "
        f"detected as copies. {arguments.copied} copies of each kind, threshold {threshold:g}:",
        "",
        "| copy | detected | agreeing share: minimum, median |",
        "| --- | --- | --- |",
    ]
    for name, copy in COPIES.items():
        pairs = zip(marks[: arguments.copied], waves[: arguments.copied], strict=True)
        shares = np.array([agreement(mark, landmarks(copy(wave))) for mark, wave in pairs])
        lines.append(
            f"| {name} | {np.mean(shares >= threshold):.0%} | {shares.min():.2f}, {np.median(shares):.2f} |"
        )
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
