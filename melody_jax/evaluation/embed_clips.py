"""Embeds and measures sets of clips, in bounded memory, with any number of processes.

A set is measured in chunks of clips. Each chunk becomes a file, `<cache>/<key>/<chunk>.npz`, of some
kilobytes per clip. Process p of P measures the chunks p, p + P, ... A finished chunk is never measured again,
so the same command resumes a run that was killed. `key` is a hash of all that the rows depend on.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from melody_jax import files
from melody_jax.data import records
from melody_jax.errors import UserError
from melody_jax.evaluation import fidelity, signal
from melody_jax.evaluation.clip_features import ClipFeatures, clip_features
from melody_jax.evaluation.clips import ClipSet, pieces
from melody_jax.evaluation.embedding import Embedding
from melody_jax.evaluation.npz import DAMAGED, read_npz, write_npz
from melody_jax.evaluation.sound import Sound
from melody_jax.evaluation.stereo import STEREO

CHUNK = 64
"""Clips per file."""
BATCH = 8
"""Pieces of equal length that are embedded together."""
VERSION = 7
"""Version of the columns; rows of another version are measured again."""
REJECTS = "rejects"
"""Column with JSON: index of a clip that cannot be measured -> why."""
SHORTEST = 2.0
"""Seconds of the shortest clip that can be measured."""
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
"""Progress bar with clips per second, never seconds per clip."""

Row = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Rows:
    """Measurements of N pieces."""

    clip: np.ndarray
    """Index of each piece's clip in the set, (N,)."""
    start: np.ndarray
    """Start of each piece in its clip, seconds, (N,)."""
    embeddings: np.ndarray
    """Embeddings (N, E)."""
    signal: dict[str, np.ndarray]
    """Columns of `signal.signal_metrics`, and "steady_bass" (`fidelity.steady_bass`), (N,) each; without those of the
    stereo image if all clips are mono. They are nan where only some are."""
    features: ClipFeatures
    """Features for the judges; empty unless requested."""
    rejects: dict[int, str] = field(default_factory=dict)
    """Index of each clip without pieces in the set -> why it cannot be measured."""

    def __len__(self) -> int:
        return len(self.clip)


@dataclass(frozen=True, kw_only=True)
class Share:
    """How sets are measured, and this process's share of the chunks."""

    cache: Path
    """Folder of the measured chunks."""
    seconds: float = 10.24
    """Length of the pieces that clips are cut into."""
    process: int = 0
    """Index of this process."""
    processes: int = 1
    """Number of processes."""


def measure(clips: ClipSet, embedding: Embedding, share: Share, with_features: bool = False) -> Rows | None:
    """Measures every piece of the set's clips; None while chunks of other processes are missing.

    Args:
        clips: the set.
        embedding: maps pieces to embeddings.
        share: cache, length of the pieces, and this process's share.
        with_features: also compute the features for the judges.

    Raises:
        UserError: every clip cannot be read or is shorter than 2 s, or the cache cannot be written.
    """
    settings = [VERSION, clips.sha256, embedding.sha256, share.seconds, with_features, CHUNK]
    folder = share.cache / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    files.make_folder(folder)
    chunks = range(-(-len(clips.clips) // CHUNK))
    chunk_files = [folder / f"{chunk:06d}.npz" for chunk in chunks]
    missing = [chunk for chunk in chunks[share.process :: share.processes] if not chunk_files[chunk].exists()]
    total = sum(len(clips.clips[chunk * CHUNK : (chunk + 1) * CHUNK]) for chunk in missing)
    quiet = None if missing else True
    with tqdm(total=total, unit=" clips", desc=clips.name, bar_format=BAR, disable=quiet) as bar:
        for chunk in missing:
            rejects: dict[int, str] = {}
            measured = _measure_pieces(clips, chunk, share.seconds, with_features, rejects, bar)
            columns = _embed_chunk(measured, embedding)
            write_npz(chunk_files[chunk], columns | {REJECTS: records.encode_json(rejects)})
    if not all(file.exists() for file in chunk_files):
        return None
    rows = _read(chunk_files)
    if not len(rows):
        first = min(rows.rejects)
        raise UserError(
            f"{clips.where}: no clip can be measured; the first, {clips.clips[first].name}: {rows.rejects[first]}"
        )
    return rows


def _embed_chunk(measured: Iterator[tuple[Sound, Row]], embedding: Embedding) -> Row:
    """The columns of one chunk: "clip", "start", "embeddings", "signal/<name>", "features/<name>"."""
    rows: list[Row] = []
    embeddings: list[np.ndarray] = []
    converted = ((sound.to(embedding.audio_format), row) for sound, row in measured)
    for waves, batch_rows in _batches(converted):
        padding = np.repeat(waves[-1:], BATCH - len(waves), axis=0)  # one batch size, one compilation
        batch = np.concatenate([waves, padding])
        embeddings.extend(np.asarray(embedding(batch), np.float32)[: len(waves)])
        rows.extend(batch_rows)
    if not rows:
        return {}
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return columns | {"embeddings": np.stack(embeddings)}


def _measure_pieces(
    clips: ClipSet, chunk: int, seconds: float, with_features: bool, rejects: dict[int, str], bar: tqdm
) -> Iterator[tuple[Sound, Row]]:
    """The sound and the measurements of each piece of a chunk's clips; `rejects` receives those without any."""
    for index in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(clips.clips))):
        try:
            cut = list(pieces(clips.clips[index], seconds))
        except UserError as error:
            rejects[index] = str(error).removeprefix(f"{clips.clips[index].file}: ")
            cut = []
        for start, sound in cut:
            if sound.seconds < SHORTEST:
                rejects[index] = f"{sound.seconds:.2f} s; a clip must have {SHORTEST:g} s"
                continue
            row = {"clip": np.asarray(index, np.int64), "start": np.asarray(start, np.float64)}
            for name, value in _signal(sound).items():
                row[f"signal/{name}"] = np.asarray(value, np.float64)
            if with_features:
                row |= {f"features/{name}": value for name, value in clip_features(sound.to()).items()}
            yield sound, row
        bar.update()


def _signal(sound: Sound) -> dict[str, float]:
    return signal.signal_metrics(sound) | {"steady_bass": fidelity.steady_bass(sound.to())}


def _batches(measured: Iterator[tuple[np.ndarray, Row]]) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """Batches of up to `BATCH` consecutive pieces of equal length."""
    for _, equal_pieces in groupby(measured, key=lambda piece: len(piece[0])):
        batch: list[tuple[np.ndarray, Row]] = []
        for piece in equal_pieces:
            batch.append(piece)
            if len(batch) == BATCH:
                yield np.stack([wave for wave, _ in batch]), [row for _, row in batch]
                batch = []
        if batch:
            yield np.stack([wave for wave, _ in batch]), [row for _, row in batch]


def _read(chunk_files: list[Path]) -> Rows:
    parts: dict[str, list[np.ndarray]] = {}
    for file in chunk_files:
        for name, column in read_npz(file, (REJECTS,), DAMAGED).items():
            parts.setdefault(name, []).append(column)
    rejects: dict[int, str] = {}
    for part in parts.pop(REJECTS):
        rejects |= {int(index): reason for index, reason in records.decode_json(part).items()}
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    nothing = np.zeros(0)
    groups: dict[str, Row] = {"signal": {}, "features": {}}
    for name, values in columns.items():
        group, _, column = name.partition("/")
        if column and not (column in STEREO and np.isnan(values).all()):
            groups[group][column] = values
    return Rows(
        columns.get("clip", nothing),
        columns.get("start", nothing),
        columns.get("embeddings", nothing),
        groups["signal"],
        groups["features"],
        rejects,
    )
