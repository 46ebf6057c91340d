"""Clips to rows of numbers, in bounded memory, by any number of processes.

A set is measured in chunks of clips. A chunk's rows are a file, `<cache>/<key>/<chunk>.npz`, and are what stays of its
sound: some kilobytes a clip. Chunk i is measured by process i modulo the processes; what is there is not measured
again, so a run that was killed goes on with the same command. `key` hashes all that the rows depend on.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from melody_jax.data.records import write_bytes
from melody_jax.errors import UserError
from melody_jax.evaluation import fact_judges, signal
from melody_jax.evaluation.clips import ClipSet, pieces
from melody_jax.evaluation.embedding import Embedding
from melody_jax.sampling.batch_job import BAR

CHUNK = 64
"""Clips a file."""
BATCH = 8
"""Pieces of equal length that are embedded at a time."""
VERSION = 1
"""Of what is measured and how: rows of another version are measured anew."""
SHORTEST = 2.0
"""Seconds of the shortest clip that can be judged."""


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows: `clip` (N,) which of the set's clips, `start` (N,) seconds, `points` (N, E), and named columns.

    `figures` are those of `signal.figures`, each (N,); `heard` is that of `hearing.listen`, empty if not asked for.
    """

    clip: np.ndarray
    start: np.ndarray
    points: np.ndarray
    figures: dict[str, np.ndarray]
    heard: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.clip)


@dataclass(frozen=True, kw_only=True)
class Share:
    """How sets are measured, and which chunks are this process's."""

    cache: Path
    seconds: float = 10.24
    process: int = 0
    processes: int = 1


def measure(clips: ClipSet, embedding: Embedding, share: Share, listen: bool = False) -> Rows | None:
    """The rows of every piece of the set's clips; None while chunks of other processes are missing.

    `listen` adds what judges need.
    Raises `UserError` for a clip that cannot be read or is under 2 s, and if the cache cannot be written.
    """
    settings = [VERSION, clips.sha256, embedding.sha256, share.seconds, listen, CHUNK]
    folder = share.cache / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    chunks = range(-(-len(clips.clips) // CHUNK))
    files = [folder / f"{chunk:06d}.npz" for chunk in chunks]
    mine = [chunk for chunk in chunks[share.process :: share.processes] if not files[chunk].exists()]
    sizes = {chunk: len(clips.clips[chunk * CHUNK : (chunk + 1) * CHUNK]) for chunk in mine}
    with tqdm(
        total=sum(sizes.values()), unit=" clips", desc=clips.name, bar_format=BAR, disable=not mine
    ) as progress:
        for chunk in mine:
            _write(files[chunk], _chunk(clips, chunk, embedding, share.seconds, listen, progress))
    return _read(files) if all(file.exists() for file in files) else None


def _chunk(
    clips: ClipSet, chunk: int, embedding: Embedding, seconds: float, listen: bool, progress: tqdm
) -> dict[str, np.ndarray]:
    """The columns of one chunk: "clip", "start", "points", "figures/<name>", "heard/<name>"."""
    rows: list[dict[str, np.ndarray]] = []
    points: list[np.ndarray] = []
    for waves, found in _batches(_described(clips, chunk, seconds, listen, progress)):
        filled = np.concatenate(
            [waves, np.repeat(waves[-1:], BATCH - len(waves), axis=0)]
        )  # one compiled size
        points.extend(np.asarray(embedding(filled), np.float32)[: len(waves)])
        rows.extend(found)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {"points": np.stack(points)}


def _described(
    clips: ClipSet, chunk: int, seconds: float, listen: bool, progress: tqdm
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The sound and the columns of each piece of a chunk's clips."""
    for index in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(clips.clips))):
        for start, wave in pieces(clips.clips[index], seconds):
            if len(wave) < SHORTEST * 24_000:
                raise UserError(
                    f"{clips.clips[index].name}: {len(wave) / 24_000:.2f} s; a clip must have {SHORTEST:g} s"
                )
            row = {"clip": np.int64(index), "start": np.float64(start)}
            row |= {f"figures/{name}": np.float64(value) for name, value in signal.figures(wave).items()}
            if listen:
                row |= {f"heard/{name}": value for name, value in fact_judges.listen(wave).items()}
            yield wave, row  # type: ignore[misc]
        progress.update()


def _batches(
    pieces: Iterator[tuple[np.ndarray, dict[str, np.ndarray]]],
) -> Iterator[tuple[np.ndarray, list[dict[str, np.ndarray]]]]:
    """Up to `BATCH` pieces that follow one another and are of one length."""
    for _, alike in groupby(pieces, key=lambda piece: len(piece[0])):
        held: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        for piece in alike:
            held.append(piece)
            if len(held) == BATCH:
                yield np.stack([wave for wave, _ in held]), [row for _, row in held]
                held = []
        if held:
            yield np.stack([wave for wave, _ in held]), [row for _, row in held]


def _write(file: Path, columns: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    write_bytes(file, buffer.getvalue())


def _read(files: list[Path]) -> Rows:
    parts: dict[str, list[np.ndarray]] = {}
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as columns:
                for name in columns.files:
                    parts.setdefault(name, []).append(columns[name])
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{file}: damaged; delete it, and its clips are measured again ({error})"
            ) from None
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    groups: dict[str, dict[str, np.ndarray]] = {"figures": {}, "heard": {}}
    for name, values in whole.items():
        kind, _, rest = name.partition("/")
        if rest:
            groups[kind][rest] = values
    return Rows(whole["clip"], whole["start"], whole["points"], groups["figures"], groups["heard"])
