"""`melody compose`: composes, renders and captions pieces in parallel, as shards of audio records or as sound files.

Piece i of a split depends only on (seed, split, i), so the output is the same bytes for any number of workers. The
seeds of the splits are disjoint. A run that was stopped resumes with what is missing.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from melody_jax import __version__, audio, composer, files, folders, loudness
from melody_jax.audio_format import (
    HIGHEST_COMPOSED_RATE,
    LOWEST_RATE,
    SAMPLE_RATE,
    AudioFormat,
    check_fits_flac,
)
from melody_jax.composer import captions, compose, render, soundfont, tune
from melody_jax.composer.piece import Piece
from melody_jax.composer.splits import SPLITS, split_index
from melody_jax.data import compose_workers, records
from melody_jax.errors import UserError
from melody_jax.mirror import mirrored
from melody_jax.options import check_fields, option

CAPTIONS = 8
"""Captions per piece."""
MAX_SEED = 1_000_000
FORMATS = ("shards", "wav", "flac")
CAPTION_FILE = "captions.jsonl"
SETTINGS_FILE = ".compose.json"
"""Settings and versions of a folder of sound files; `melody prepare` ignores hidden files."""
_PIECES_PER_SEED = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """Composes a captioned corpus."""

    out: str = option("", group="where to write")
    """Folder for the corpus; it is created if it is missing. A stopped run resumes when the same command runs again."""
    format: str = "shards"
    """shards: ArrayRecord shards, for training. wav, flac: one sound file per piece and captions.jsonl, for
    listening; `melody prepare --source OUT --captions OUT/captions.jsonl` reads them."""
    hours: float = option(1.0, group="what to compose")
    """Hours of audio, rounded to a number of pieces."""
    split: str = "train"
    """train, validation or test: seeds, progressions and motifs of the splits are disjoint."""
    seed: int = 0
    """Seed of the corpus, 0 to 999,999."""
    seconds: float = 30.0
    """Length of each piece, seconds."""
    sample_rate: int = option(SAMPLE_RATE, least=LOWEST_RATE, most=HIGHEST_COMPOSED_RATE)
    """Sample rate, Hz. The notes are the same at any rate, and everything is synthesised at it, not resampled."""
    channels: int = option(1, least=1, most=2)
    """1: mono; 2: stereo, with parts and rooms between left and right."""
    tunes: bool = False
    """Stores the melody tokens of each piece's tune, its melody played again on another instrument, for networks that
    follow a melody (docs/systems.md). A piece takes 0.3 s longer."""
    workers: int = option(0, group="how to compose")
    """Processes; 0: one per CPU. The output does not depend on it."""
    soundfonts: tuple[str, ...] = ("auto",)
    """Names of SoundFonts; auto: every installed one that the split may use; none: only the built-in synthesiser."""
    pieces_per_shard: int = 60
    """Pieces per shard. An interruption costs each worker at most one shard."""

    def __post_init__(self) -> None:
        check_fields(self)
        split_index(self.split)
        if self.format not in FORMATS:
            raise UserError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}")
        if self.format != "wav":
            check_fits_flac(self.sample_rate)
        if not 0 <= self.seed < MAX_SEED:
            raise UserError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED - 1}")
        if not 1 <= self.seconds <= 600:
            raise UserError(f"seconds is {self.seconds}; it must be from 1 to 600")
        if self.pieces_per_shard < 1:
            raise UserError(f"pieces_per_shard is {self.pieces_per_shard}; it must be at least 1")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; it must be 0 (one per CPU) or more")
        if not (math.isfinite(self.hours) and 1 <= self.pieces <= _PIECES_PER_SEED):
            raise UserError(f"hours is {self.hours:g}; it must hold at least one piece of {self.seconds:g} s")

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the pieces."""
        return AudioFormat(sample_rate=self.sample_rate, channels=self.channels)

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return round(self.hours * 3600 / self.seconds)

    @property
    def groups(self) -> int:
        """Number of groups of pieces that workers make: one per shard."""
        return math.ceil(self.pieces / self.pieces_per_shard)

    def group_pieces(self, group: int) -> range:
        """Indices of the pieces of a group."""
        first = group * self.pieces_per_shard
        return range(first, min(first + self.pieces_per_shard, self.pieces))


@dataclass(frozen=True)
class Sources:
    """What the corpus depends on apart from the code: settings as they are stored, versions, and font paths by name."""

    settings: dict[str, Any]
    versions: dict[str, str]
    fonts: dict[str, str]


def piece_seed(corpus_seed: int, split: str, index: int) -> int:
    """The seed of piece `index`. Its remainder by three is the split, so that splits share no seed."""
    return (corpus_seed * _PIECES_PER_SEED + index) * len(SPLITS) + split_index(split)


def compose_corpus(config: ComposeConfig) -> None:
    """Makes the corpus, or the missing part of it, and prints what the folder holds.

    Raises:
        UserError: the folder cannot be used or holds another corpus, or a SoundFont is missing.
    """
    if not config.out:
        raise UserError("a folder for the corpus is needed: --out FOLDER")
    sources = _sources(config)
    started = time.monotonic()
    with mirrored(config.out) as mirror:
        config = dataclasses.replace(config, out=str(mirror.folder))
        files.make_folder(mirror.folder)
        contents = (
            _compose_shards(config, sources) if config.format == "shards" else _compose_files(config, sources)
        )
        files.remove_unfinished(mirror.folder)
    hours = config.pieces * config.seconds / 3600
    print(
        f"{mirror}: {config.pieces} pieces, {hours:.2f} h, in {contents}; "
        f"this run took {time.monotonic() - started:.0f} s",
        flush=True,
    )


def _compose_shards(config: ComposeConfig, sources: Sources) -> str:
    """Writes the missing shards and the manifest; returns a description of the folder."""
    folder = Path(config.out)
    manifest = _begin_shards(folder, config, sources)
    finished = {shard.name for shard in manifest.shards}
    missing = [group for group in range(config.groups) if _shard_name(config, group) not in finished]
    make_group = partial(_make_shard, config, sources.fonts)
    with _progress_bar(config, manifest.records) as bar:
        for _, shard in compose_workers.run_groups(make_group, missing, config.workers, bar.update):
            manifest = dataclasses.replace(manifest, shards=(*manifest.shards, shard))
            records.write_manifest(folder, manifest)
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    return f"{len(manifest.shards)} shards ({size:.1f} MB)"


def _compose_files(config: ComposeConfig, sources: Sources) -> str:
    """Writes the missing sound files and the table of captions; returns a description of the folder."""
    folder = Path(config.out)
    _begin_files(folder, dataclasses.replace(sources, settings={**sources.settings, "format": config.format}))
    make_group = partial(_make_files, config, sources.fonts)
    rows: dict[int, str] = {}
    with _progress_bar(config, 0) as bar:
        groups = range(config.groups)
        rows.update(compose_workers.run_groups(make_group, groups, config.workers, bar.update))
    files.write_bytes(folder / CAPTION_FILE, "".join(rows[group] for group in sorted(rows)).encode())
    return f"{config.format.upper()} files with {CAPTIONS} captions per piece in {CAPTION_FILE}"


def _progress_bar(config: ComposeConfig, finished: int) -> tqdm:
    return tqdm(
        total=config.pieces,
        initial=finished,
        desc="compose",
        unit=" pieces",
        dynamic_ncols=True,
        disable=None,
    )


def make_piece(
    config: ComposeConfig, fonts: dict[str, str], index: int, audible: bool = True
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Composes and captions piece `index`: its audio float32 (T,) or (T, 2), None unless `audible`, and its meta.

    `fonts` maps names to paths.
    """
    seed = piece_seed(config.seed, config.split, index)
    rng = np.random.default_rng([seed, 0xF0])
    piece = compose.compose(seed, config.seconds, split=config.split)
    font = sorted(fonts)[rng.integers(len(fonts))] if fonts else None
    meta = _meta(piece, f"{config.split}-{config.seed}-{index:07d}", config.split, font)
    if config.tunes:
        meta["melody"] = tune.tune_tokens(piece)
    if not audible:
        return None, meta
    wave = render.render(piece, Path(fonts[font]) if font else None, config.audio_format)
    if not np.isfinite(wave).all() or np.abs(wave).max() < 1e-3:
        raise RuntimeError(f"piece {index} (seed {seed}, {piece.facts.genre}) rendered to silence or NaN")
    return wave, meta


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


def _make_shard(config: ComposeConfig, fonts: dict[str, str], group: int) -> records.Shard:
    """Writes the shard of a group, in a worker."""

    def audio_records() -> Iterator[dict[str, np.ndarray]]:
        for index in config.group_pieces(group):
            compose_workers.check_running()
            wave, meta = make_piece(config, fonts, index)
            assert wave is not None
            flac = audio.encode_flac(wave, config.sample_rate)
            yield {"audio": np.frombuffer(flac, np.uint8), "meta": records.encode_json(meta)}
            compose_workers.count_piece()

    return records.write_shard(Path(config.out) / _shard_name(config, group), audio_records())


def _make_files(config: ComposeConfig, fonts: dict[str, str], group: int) -> str:
    """Writes the missing sound files of a group, in a worker; returns its lines of the table of captions."""
    lines = []
    for index in config.group_pieces(group):
        compose_workers.check_running()
        name = f"{config.split}-{config.seed}-{index:07d}.{config.format}"
        path = Path(config.out) / name
        wave, meta = make_piece(config, fonts, index, audible=not path.is_file())
        if wave is not None:
            audio.write(path, wave, config.sample_rate)
        lines += [
            json.dumps({"file": name, "caption": caption}, ensure_ascii=False) for caption in meta["captions"]
        ]
        compose_workers.count_piece()
    return "".join(f"{line}\n" for line in lines)


def _sources(config: ComposeConfig) -> Sources:
    fonts = _fonts(config)
    settings = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("out", "workers", "format")
    }
    settings["soundfonts"] = {name: files.file_hash(path) for name, path in sorted(fonts.items())}
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "soundfile")}
    return Sources(settings, versions | {"melody_jax": __version__, "composer": _source_hash()}, fonts)


def _fonts(config: ComposeConfig) -> dict[str, str]:
    """Names and paths of the fonts in use; none, with a notice, if "auto" finds no font or no FluidSynth."""
    if config.soundfonts == ("none",):
        return {}
    if config.soundfonts != ("auto",):
        paths = {name: str(soundfont.find(name)) for name in config.soundfonts}
        for name in config.soundfonts:
            splits = soundfont.FONTS[name].splits
            if config.split not in splits:
                raise UserError(f"SoundFont {name} is reserved for the split {', '.join(splits)}")
        soundfont.library()
        return paths
    paths = {name: str(path) for name, path in soundfont.installed(config.split).items()}
    if not paths:
        packages = " ".join(font.package for font in soundfont.FONTS.values() if config.split in font.splits)
        print(
            "no SoundFont is installed, so the built-in synthesiser plays everything; "
            f"for sampled instruments: apt-get install {packages}"
        )
        return {}
    try:
        soundfont.library()
    except UserError as error:
        print(f"the built-in synthesiser plays everything: {error}")
        return {}
    return paths


def _begin_shards(folder: Path, config: ComposeConfig, sources: Sources) -> records.ShardManifest:
    """The manifest to continue: a new one, or that of a run with the same settings, without damaged shards."""
    manifest = records.ShardManifest(
        kind="audio", settings=sources.settings, versions=sources.versions, shard_count=config.groups
    )
    if (folder / SETTINGS_FILE).exists():
        raise UserError(f"{folder}: holds sound files; choose another folder for shards")
    if not (folder / records.MANIFEST).exists():
        if any(folder.glob("*.array_record")):
            raise UserError(f"{folder}: holds shards without a {records.MANIFEST}; choose an empty folder")
        records.write_manifest(folder, manifest)
        return manifest
    previous = records.read_manifest(folder)
    _check_same(folder, sources, previous.settings, previous.versions)
    shards = tuple(shard for shard in previous.shards if _is_intact(folder, shard))
    return dataclasses.replace(manifest, shards=shards)


def _begin_files(folder: Path, sources: Sources) -> None:
    """Stores the settings of a new folder of sound files, or compares them with those of the run to continue."""
    if (folder / records.MANIFEST).exists():
        raise UserError(f"{folder}: holds shards; choose another folder for sound files")
    path = folder / SETTINGS_FILE
    if path.exists():
        previous = files.read_json(path)
        if not isinstance(previous, dict) or not all(
            isinstance(previous.get(name), dict) for name in ("settings", "versions")
        ):
            raise UserError(f"{path}: not the settings of a corpus; choose another folder")
        _check_same(folder, sources, previous["settings"], previous["versions"])
    else:
        content = {"settings": sources.settings, "versions": sources.versions}
        files.write_json(path, content)


def _check_same(folder: Path, sources: Sources, settings: dict[str, Any], versions: dict[str, str]) -> None:
    """Raises `UserError` unless a folder was made with these settings and versions."""
    for previous, current in ((settings, sources.settings), (versions, sources.versions)):
        for name in sorted({*previous, *current}):
            if previous.get(name) != current.get(name):
                raise UserError(
                    f"{folder}: holds a corpus with {name} {previous.get(name)}, not {current.get(name)}; "
                    "choose another folder"
                )


def _source_hash() -> str:
    """Hash of the code that determines the pieces: shards of two versions must not share a corpus."""
    digest = hashlib.sha256()
    package = Path(composer.__path__[0])
    modules = sorted(package / name for name in folders.walk(package) if name.endswith(".py"))
    for path in (Path(audio.__file__), Path(loudness.__file__), *modules):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_intact(folder: Path, shard: records.Shard) -> bool:
    try:
        records.check_shard(folder, shard, content=True)
    except UserError:
        return False
    return True


def _shard_name(config: ComposeConfig, group: int) -> str:
    return records.shard_name("audio", group, config.groups)
