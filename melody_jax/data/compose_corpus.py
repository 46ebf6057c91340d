"""Makes a corpus: composes, renders and captions pieces into shards of audio records, in parallel and resumably.

Piece i of a split depends on (seed, split, i) alone, so the shards are the same bytes for any number of workers; the
seeds of the splits never meet. A run that was stopped goes on with the shards that are missing.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from melody_jax import __version__, audio
from melody_jax.composer import captions, compose, render, soundfont
from melody_jax.composer.piece import Piece
from melody_jax.composer.splits import SPLITS, split_index
from melody_jax.data import records
from melody_jax.errors import UserError

CAPTIONS = 8
MAX_SEED = 1_000_000
_PIECES_PER_SEED = 1_000_000_000
# One thread per worker: NumPy's matrix products round differently for other numbers of threads.
_ONE_THREAD: dict[str, str] = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


@dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """A corpus to make."""

    out: str = ""
    """Folder for the shards; made if it is missing. A run that was stopped goes on in the same folder."""
    hours: float = 1.0
    """Hours of audio, rounded to whole pieces."""
    split: str = "train"
    """train, validation or test: seeds, progressions and motifs of the splits are disjoint."""
    seed: int = 0
    """Seed of the corpus, 0 to 999,999."""
    seconds: float = 30.0
    """Length of every piece in seconds."""
    workers: int = 0
    """Processes; 0: one for every CPU. The result does not depend on it."""
    soundfonts: tuple[str, ...] = ("auto",)
    """Names of SoundFonts; auto: every installed one that the split may hear; none: the built-in synthesiser alone."""
    pieces_per_shard: int = 60
    """Pieces in a shard: what is lost at most, for each worker, if the run stops."""

    def __post_init__(self) -> None:
        split_index(self.split)
        if not 0 <= self.seed < MAX_SEED:
            raise UserError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED - 1}")
        if not 1 <= self.seconds <= 600:
            raise UserError(f"seconds is {self.seconds}; it must be from 1 to 600")
        if self.pieces_per_shard < 1:
            raise UserError(f"pieces_per_shard is {self.pieces_per_shard}; it must be at least 1")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; it must be 0 (one for every CPU) or more")
        if not (math.isfinite(self.hours) and 1 <= self.pieces <= _PIECES_PER_SEED):
            raise UserError(f"hours is {self.hours}; it must be at least one piece of {self.seconds} seconds")

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return round(self.hours * 3600 / self.seconds)


def piece_seed(config_seed: int, split: str, index: int) -> int:
    """The seed of piece `index`. Its remainder by three is the split, so that no two splits share one."""
    return (config_seed * _PIECES_PER_SEED + index) * len(SPLITS) + split_index(split)


def compose_corpus(config: ComposeConfig) -> records.Manifest:
    """Makes the corpus, or what is missing of it, and returns its manifest.

    Raises `UserError` if the folder cannot be used, holds another corpus, or a SoundFont is missing.
    """
    if not config.out:
        raise UserError("a folder for the corpus is needed: --out FOLDER")
    fonts = _fonts(config)
    folder = Path(config.out)
    manifest = _start(folder, config, fonts)
    todo = [index for index in range(manifest.shard_count) if _name(config, index) not in _names(manifest)]
    started = time.monotonic()
    with tqdm(total=config.pieces, initial=manifest.records, unit="piece", dynamic_ncols=True) as bar:
        for shard in _make_shards(config, fonts, todo, bar) if todo else ():
            manifest = dataclasses.replace(manifest, shards=(*manifest.shards, shard))
            records.write_manifest(folder, manifest)
    hours, taken = config.pieces * config.seconds / 3600, time.monotonic() - started
    size = sum(shard.bytes for shard in manifest.shards) / 1e9
    print(
        f"{folder}: {config.pieces} pieces, {hours:.2f} h, {size:.2f} GB; this run took {taken:.0f} s",
        flush=True,
    )
    return records.read_manifest(folder)


def make_record(config: ComposeConfig, fonts: dict[str, str], index: int) -> dict[str, np.ndarray]:
    """Composes, renders and captions piece `index`: an audio record (see `records`). `fonts` maps names to paths."""
    seed = piece_seed(config.seed, config.split, index)
    rng = np.random.default_rng([seed, 0xF0])
    piece = compose.compose(seed, config.seconds, split=config.split)
    font = sorted(fonts)[rng.integers(len(fonts))] if fonts else None
    sound = render.render(piece, Path(fonts[font]) if font else None)
    if not np.isfinite(sound).all() or np.abs(sound).max() < 1e-3:
        raise RuntimeError(f"piece {index} (seed {seed}, {piece.facts.genre}) rendered to silence or NaN")
    name = f"{config.split}-{config.seed}-{index:07d}"
    meta = _meta(piece, name, config.split, font)
    return {"audio": np.frombuffer(audio.encode_flac(sound), np.uint8), "meta": records.encode_json(meta)}


def _meta(piece: Piece, name: str, split: str, font: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "facts": dataclasses.asdict(piece.facts),
        "captions": captions.captions(piece.facts, piece.seed, CAPTIONS),
        "seed": piece.seed,
        "renderer": piece.production.renderer if font else "synth",
        "soundfont": font,
        "split": split,
    }


def _fonts(config: ComposeConfig) -> dict[str, str]:
    """Names and paths of the fonts to use; none, with a notice, if "auto" finds nothing to play or to play it with."""
    wanted = config.soundfonts
    if wanted == ("none",):
        return {}
    if wanted != ("auto",):
        paths = {name: str(soundfont.find(name)) for name in wanted}
        for name in wanted:
            if config.split not in soundfont.FONTS[name].splits:
                raise UserError(
                    f"SoundFont {name} is kept for the split {', '.join(soundfont.FONTS[name].splits)}"
                )
        soundfont.library()
        return paths
    found = {name: str(path) for name, path in soundfont.installed(config.split).items()}
    packages = " ".join(font.package for font in soundfont.FONTS.values() if config.split in font.splits)
    if not found:
        print(
            f"no SoundFont is installed, so the built-in synthesiser plays everything: apt-get install {packages}"
        )
        return {}
    try:
        soundfont.library()
    except UserError as error:
        print(f"the built-in synthesiser plays everything: {error}")
        return {}
    return found


def _start(folder: Path, config: ComposeConfig, fonts: dict[str, str]) -> records.Manifest:
    """The manifest to go on from: a new one, or the one of a run with the same settings, less damaged shards."""
    settings = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "workers")
    }
    settings["soundfonts"] = {name: records.file_hash(path) for name, path in sorted(fonts.items())}
    fresh = records.Manifest(
        kind="audio",
        settings=settings,
        versions={name: importlib.metadata.version(name) for name in ("numpy", "scipy", "soundfile")}
        | {"melody_jax": __version__, "composer": _source_hash()},
        shard_count=math.ceil(config.pieces / config.pieces_per_shard),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be made ({error.strerror})") from error
    if not (folder / records.MANIFEST).exists():
        if any(folder.glob("*.array_record")):
            raise UserError(f"{folder}: holds shards without a {records.MANIFEST}; choose an empty folder")
        records.write_manifest(folder, fresh)
        return fresh
    found = records.read_manifest(folder)
    for kind in ("settings", "versions"):
        old, new = getattr(found, kind), getattr(fresh, kind)
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                raise UserError(
                    f"{folder}: holds a corpus with {name} {old.get(name)}, not {new.get(name)}; choose another folder"
                )
    return dataclasses.replace(fresh, shards=tuple(shard for shard in found.shards if _whole(folder, shard)))


def _source_hash() -> str:
    """Of the code that makes the pieces: shards of two versions must not end up in one corpus."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (Path(audio.__file__), *sorted(here.rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _whole(folder: Path, shard: records.Shard) -> bool:
    try:
        records.check_shard(folder, shard, content=True)
    except UserError:
        return False
    return True


def _names(manifest: records.Manifest) -> set[str]:
    return {shard.name for shard in manifest.shards}


def _name(config: ComposeConfig, index: int) -> str:
    return records.shard_name("audio", index, math.ceil(config.pieces / config.pieces_per_shard))


def _make_shards(
    config: ComposeConfig, fonts: dict[str, str], todo: list[int], bar: tqdm
) -> Iterator[records.Shard]:
    """Shards as they are finished, by spawned workers, while the bar follows the pieces."""
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    workers = min(len(todo), config.workers or os.cpu_count() or 1)
    with (
        _environment(_ONE_THREAD),
        ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(count, stop)) as pool,
    ):
        pending: set[Future] = {pool.submit(_make_shard, config, fonts, index) for index in todo}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(count.value + bar.initial - bar.n)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise UserError("a worker was killed (out of memory?); run again with fewer --workers") from error
        finally:
            stop.set()
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


class _Stopped(Exception):
    """The main process wants no more pieces."""


class _Worker:
    """What a worker process shares with the main one."""

    count: Any = None
    stop: Any = None


def _begin_worker(count: Any, stop: Any) -> None:
    _Worker.count, _Worker.stop = count, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A main process that was killed cannot say so; a worker that waits for work would wait for ever.
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _make_shard(config: ComposeConfig, fonts: dict[str, str], index: int) -> records.Shard:
    return records.write_shard(Path(config.out) / _name(config, index), _shard_records(config, fonts, index))


def _shard_records(
    config: ComposeConfig, fonts: dict[str, str], index: int
) -> Iterator[dict[str, np.ndarray]]:
    first = index * config.pieces_per_shard
    for piece in range(first, min(first + config.pieces_per_shard, config.pieces)):
        if _Worker.stop.is_set():
            raise _Stopped
        yield make_record(config, fonts, piece)
        with _Worker.count.get_lock():
            _Worker.count.value += 1
