"""Speed of `melody prepare`, and whether it reports every odd file.

    melody compose --out corpus/bench --hours 1 --soundfonts none
    python benchmarks/prepare.py --corpus corpus/bench

Writes docs/evaluation/prepare.md. The composed pieces are concatenated to tracks of four minutes and encoded
as stereo MP3 at 44.1 kHz, the usual form of music. The odd files are those of the tests, eleven of each kind,
and one of two hours.
"""

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import tyro

from melody_jax import audio
from melody_jax.data.prepare import PrepareConfig, prepare
from melody_jax.data.records import ShardManifest, open_shards

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]
from helpers.recordings import music, odd_files  # noqa: E402  # the tests' odd files

TRACK_PIECES = 8


@dataclass(frozen=True)
class Arguments:
    """Times the preparation of audio and features, and prepares odd files."""

    corpus: Path
    """Audio shards of pieces of 30 s."""
    pieces: int = 120
    """Number of pieces."""
    networks: Path = ROOT / "melody_jax" / "weights" / "mini"
    """Released networks that make the features."""
    out: Path = ROOT / "docs" / "evaluation" / "prepare.md"
    """File of the report."""


def make_tracks(corpus: Path, count: int, folder: Path) -> float:
    """Writes the tracks; returns hours of audio."""
    source = open_shards(corpus, "audio")
    for first in range(0, min(count, len(source)), TRACK_PIECES):
        pieces = range(first, min(first + TRACK_PIECES, len(source)))
        wave = np.concatenate([audio.decode_flac(source[i]["audio"].tobytes()) for i in pieces])
        stereo = np.stack([audio.resample(wave, 24_000, 44_100)] * 2, axis=1)
        soundfile.write(folder / f"{first:05d}.mp3", stereo, 44_100, format="MP3", subtype="MPEG_LAYER_III")
    return sum(audio.seconds(file) for file in folder.iterdir()) / 3600


def timed(config: PrepareConfig, hours: float) -> tuple[str, ShardManifest]:
    """Wall time, and CPU time of this process and its workers, which other load does not affect."""
    load = os.getloadavg()[0]
    begin = time.monotonic()
    before = processor_seconds()
    manifest = prepare(config)
    elapsed = time.monotonic() - begin
    used = processor_seconds() - before
    rate = f"{hours * 3600 / elapsed:.0f} hours of audio per hour"
    return (
        f"{hours:.2f} h in {elapsed:.0f} s, {rate}; {used:.0f} s of CPU time; load before {load:.1f}",
        manifest,
    )


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def odd(folder: Path, out: Path) -> list[str]:
    expected = odd_files(folder, copies=11)
    hours = np.tile(music(7, 60.0, 8000), 120)
    soundfile.write(folder / "two hours.wav", hours, 8000)
    expected["two hours.wav"] = ""
    manifest = prepare(PrepareConfig(source=str(folder), out=str(out), min_seconds=0.5, shard_recordings=32))
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    reasons = {row["recording"]: row["reason"] for row in rows}
    wrong = {name for name, reason in expected.items() if reasons.get(name, "") != reason}
    used = manifest.counts["recordings_used"]
    lines = [f"{len(expected)} odd files, {len(reasons)} listed in rejects.jsonl, {used} used:", ""]
    lines += ["| reason of the rejection | files |", "| --- | --- |"]
    lines += [f"| {reason} | {count} |" for reason, count in sorted(Counter(reasons.values()).items())]
    return [
        *lines,
        "",
        f"Files with an unexpected outcome: {', '.join(sorted(wrong)) or 'none'}.",
    ]


def main(arguments: Arguments) -> None:
    with tempfile.TemporaryDirectory() as name:
        folders = {part: Path(name) / part for part in ("tracks", "odd", "audio", "features", "odd_audio")}
        for part in ("tracks", "odd"):
            folders[part].mkdir()
        hours = make_tracks(arguments.corpus, arguments.pieces, folders["tracks"])
        source = str(folders["tracks"])
        audio_time, manifest = timed(
            PrepareConfig(source=source, out=str(folders["audio"]), shard_recordings=4), hours
        )
        config = PrepareConfig(
            source=str(folders["audio"]), networks=str(arguments.networks), out=str(folders["features"])
        )
        features, _ = timed(config, manifest.counts["hours"])
        size = sum(shard.bytes for shard in manifest.shards) / manifest.counts["hours"] / 1e6
        lines = [
            "# Preparing data",
            "",
            f"`benchmarks/prepare.py`, {os.cpu_count()} cores, Python {platform.python_version()}, DirectRunner.",
            "",
            f"- recordings (MP3, stereo, 44.1 kHz) to audio shards: {audio_time}; {size:.0f} MB per hour",
            f"- audio shards to features, networks of `{arguments.networks.name}`: {features}",
            "",
            *odd(folders["odd"], folders["odd_audio"]),
        ]
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
