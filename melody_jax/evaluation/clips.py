"""Sets of clips: a folder of sound files or of audio shards, with prompts, and with facts if the music was
composed.

The prompts of a folder come from the manifests of the batch job that made it, or from a file of prompts with
one JSON object per line: {"id": path of the sound file with or without its suffix, or its name alone if no other file
has it, "prompt": text}.
"""

import hashlib
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from melody_jax import audio, files, folders
from melody_jax.audio_format import HIGHEST_RATE, LOWEST_RATE, SAMPLE_RATE, AudioFormat
from melody_jax.data import records
from melody_jax.errors import InputWarning, UserError
from melody_jax.evaluation.sound import Sound
from melody_jax.sampling import manifest
from melody_jax.sampling.settings import shorten


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One sound of a set."""

    name: str
    """Path of its file in the set's folder, or the id of its record."""
    read: Callable[[], Sound]
    """Returns the sound in its own format."""
    prompt: str = ""
    """Prompt of the clip; empty if unknown."""
    facts: dict[str, Any] | None = None
    """Facts of a composed clip (`composer/piece.py:Facts`)."""
    file: Path | None = None
    """Sound file of the clip."""
    length: Callable[[], int] | None = None
    """Returns the number of samples at 24 kHz without decoding; None if that takes decoding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSet:
    """Clips in the order of their names or records."""

    where: str
    """Folder of the set."""
    sha256: str
    """Hash of names and sounds."""
    clips: list[Clip]
    """The clips."""
    rejects: dict[str, str] = field(default_factory=dict)
    """Name of each file that is no clip, although it looks like one -> why."""

    @property
    def name(self) -> str:
        """Name of the set in results: the folder's name and the first digits of the hash."""
        return f"{Path(self.where).name}@{self.sha256[:12]}"


def open_set(folder: Path, prompts: Path | None = None) -> ClipSet:
    """Opens a folder of sound files or of audio shards.

    Raises:
        UserError: the folder holds neither, the prompts cannot be read or fit several files, or shards are damaged.
    """
    folders.check_present(folder, "clips")
    if folders.size_of(folder / records.MANIFEST) >= 0:
        if prompts:
            raise UserError(f"{prompts}: {folder} holds shards, which have captions; leave the prompts out")
        return _shards(folder)
    rejects: dict[str, str] = {}
    names = [name for name in folders.walk(folder, rejects) if Path(name).suffix.lower() in audio.SUFFIXES]
    hashes: dict[str, str] = {}
    for name in names:
        if name.rpartition("/")[2].startswith("."):
            rejects[name] = "its name begins with a dot"
            continue
        try:
            hashes[name] = files.file_hash(folder / name)
        except UserError as error:
            rejects[name] = str(error).removeprefix(f"{folder / name}: ")
    if not hashes:
        raise UserError(f"{folder}: has no sound files ({', '.join(audio.SUFFIXES)}) and no audio shards")
    source = prompts or folder / "manifest.jsonl"
    by_name, absent = _match(
        _prompts(prompts) if prompts else _manifest_prompts(folder), list(hashes), source
    )
    if prompts and not by_name:
        raise UserError(f"{prompts}: none of its ids is the name of a sound file in {folder}")
    if prompts and absent:
        warnings.warn(
            f"{prompts}: {len(absent)} ids are no sound files in {folder}, the first: {absent[0]}",
            InputWarning,
            stacklevel=2,
        )
    digest = hashlib.sha256()
    clips = []
    for name, sha256 in hashes.items():
        shown = folders.printable(name)
        digest.update(f"{shown} {sha256}\n".encode())
        path = folder / name
        clips.append(Clip(name=shown, read=partial(_read, path), prompt=by_name.get(name, ""), file=path))
    printable = {folders.printable(name): reason for name, reason in rejects.items()}
    return ClipSet(where=str(folder), sha256=digest.hexdigest(), clips=clips, rejects=printable)


def _match(prompts: dict[str, str], names: list[str], source: Path) -> tuple[dict[str, str], list[str]]:
    """File -> prompt, and the ids that fit no file.

    An id is a file's path or, if it is unique, its name alone, each with or without the suffix.

    Raises:
        UserError: an id fits several files, or a file several ids.
    """
    spellings = (
        lambda name: name,
        lambda name: str(PurePosixPath(name).with_suffix("")),
        lambda name: PurePosixPath(name).name,
        lambda name: PurePosixPath(name).stem,
    )
    tables: list[dict[str, list[str]]] = []
    for spelling in spellings:
        table: dict[str, list[str]] = {}
        for name in names:
            table.setdefault(unicodedata.normalize("NFC", spelling(name)), []).append(name)
        tables.append(table)
    by_name: dict[str, str] = {}
    absent = []
    for identifier, prompt in prompts.items():
        key = unicodedata.normalize("NFC", identifier)
        matches = next((table[key] for table in tables if key in table), [])
        if len(matches) > 1:
            listed = " and ".join(map(folders.printable, matches[:3]))
            raise UserError(
                f"{source}: the id {identifier!r} fits {listed}; give the path of the file as the id"
            )
        if not matches:
            absent.append(identifier)
        elif matches[0] in by_name:
            raise UserError(f"{source}: a second prompt for {folders.printable(matches[0])}, {identifier!r}")
        by_name |= dict.fromkeys(matches, prompt)
    return by_name, absent


def count_pieces(clip: Clip, seconds: float) -> int:
    """Number of pieces that `pieces` cuts a clip into; 1 if its length is unknown before it is decoded."""
    return max(1, clip.length() // round(seconds * SAMPLE_RATE)) if clip.length else 1


def pieces(clip: Clip, seconds: float) -> Iterator[tuple[float, Sound]]:
    """(start in seconds, sound) of every full piece of `seconds`; a shorter clip is one piece."""
    sound = clip.read()
    rate = sound.audio_format.sample_rate
    size = round(seconds * rate)
    for start in range(0, max(len(sound.samples) - size, 0) + 1, size):
        yield start / rate, sound.part(start / rate, seconds)


def _read(path: Path) -> Sound:
    """The sound of a file in its own format, or in 24 kHz if its rate is far from those of music."""
    samples, stored = audio.read_as_stored(path)
    peak = np.abs(samples).max(initial=0)
    if peak > audio.LOUDEST_SAMPLE:
        raise UserError(f"{path}: samples of up to {peak:g}; floats must be in [-1, 1]")
    if LOWEST_RATE <= stored.sample_rate <= HIGHEST_RATE:
        return Sound(samples, stored)
    usual = AudioFormat(channels=stored.channels)
    return Sound(audio.convert(samples, stored, usual), usual)


def _shards(folder: Path) -> ClipSet:
    source = records.open_shards(folder, "audio")
    digest = hashlib.sha256(
        "".join(f"{shard.name} {shard.sha256}\n" for shard in source.manifest.shards).encode()
    )
    clips = []
    for index in range(len(source)):
        meta = records.decode_json(source[index]["meta"])
        captions = meta.get("captions") or [""]
        clips.append(
            Clip(
                name=str(meta.get("id", index)),
                read=partial(_decode, source, index),
                prompt=str(captions[0]),
                facts=meta.get("facts") or None,
                length=partial(_length, source, index),
            )
        )
    return ClipSet(where=str(folder), sha256=digest.hexdigest(), clips=clips)


def _decode(source: records.RecordSource, index: int) -> Sound:
    data = source[index]["audio"].tobytes()
    return Sound(audio.decode_flac(data), audio.flac_info(data)[1])


def _length(source: records.RecordSource, index: int) -> int:
    samples, stored = audio.flac_info(source[index]["audio"].tobytes())
    return samples * SAMPLE_RATE // stored.sample_rate


def _prompts(file: Path) -> dict[str, str]:
    prompts: dict[str, str] = {}
    for number, line in enumerate(files.split_lines(files.read_text(file)), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        entry = files.parse_json(line, place)
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise UserError(
                f'{place}: {shorten(line)}; it must be like {{"id": "000000", "prompt": "slow sad cello"}}'
            )
        identifier = entry.get("id", f"{len(prompts):06d}")
        if not isinstance(identifier, str | int) or isinstance(identifier, bool):
            raise UserError(f"{place}: the id is {shorten(identifier)}; it must be a text or a whole number")
        identifier = str(identifier)
        if identifier in prompts:
            raise UserError(f"{place}: a second prompt with the id {identifier}")
        prompts[identifier] = entry["prompt"]
    return prompts


def _manifest_prompts(folder: Path) -> dict[str, str]:
    prompts: dict[str, str] = {}
    for entry in manifest.read_entries(folder).values():
        file = entry.get("file")
        if isinstance(file, str) and isinstance(entry.get("prompt"), str):
            exists = folders.size_of(folder / file) >= 0
            prompts[file if exists else str(PurePosixPath(file).with_suffix(""))] = entry["prompt"]
    return prompts
