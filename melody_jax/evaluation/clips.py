"""Sets of clips: a folder of sound files or of audio shards, with prompts, and with facts if the music was
composed.

The prompts of a folder come from the manifests of the batch job that made it, or from a file of prompts with
one JSON object per line: {"id": name of the sound file without its suffix, "prompt": text}.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import audio, files
from melody_jax.data import records
from melody_jax.errors import UserError
from melody_jax.sampling import manifest

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One sound of a set."""

    name: str
    """Path of its file in the set's folder, or the id of its record."""
    read: Callable[[], np.ndarray]
    """Returns the sound, float32 (T,) at 24 kHz."""
    prompt: str = ""
    """Prompt of the clip; empty if unknown."""
    facts: dict[str, Any] | None = None
    """Facts of a composed clip (`composer/piece.py:Facts`)."""
    file: Path | None = None
    """Sound file of the clip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSet:
    """Clips in the order of their names or records."""

    where: str
    """Folder of the set."""
    sha256: str
    """Hash of names and sounds."""
    clips: list[Clip]
    """The clips."""

    @property
    def name(self) -> str:
        """Name of the set in results: the folder's name and the first digits of the hash."""
        return f"{Path(self.where).name}@{self.sha256[:12]}"


def open_set(folder: Path, prompts: Path | None = None) -> ClipSet:
    """Opens a folder of sound files or of audio shards.

    Raises:
        UserError: the folder holds neither, the prompts cannot be read, or shards are damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of clips")
    if (folder / records.MANIFEST).is_file():
        return _shards(folder)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder}: has no sound files ({', '.join(SUFFIXES)}) and no audio shards")
    prompt_by_name = _prompts(prompts) if prompts else _manifest_prompts(folder)
    digest = hashlib.sha256()
    clips = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name} {files.file_hash(path)}\n".encode())
        clips.append(
            Clip(
                name=name, read=partial(audio.read, path), prompt=prompt_by_name.get(path.stem, ""), file=path
            )
        )
    if prompts and not any(clip.prompt for clip in clips):
        raise UserError(f"{prompts}: none of its ids is the name of a sound file in {folder}")
    return ClipSet(where=str(folder), sha256=digest.hexdigest(), clips=clips)


def pieces(clip: Clip, seconds: float) -> Iterator[tuple[float, np.ndarray]]:
    """(start in seconds, sound) of every full piece of `seconds`; a shorter clip is one piece."""
    wave = clip.read()
    size = round(seconds * audio.SAMPLE_RATE)
    for start in range(0, max(len(wave) - size, 0) + 1, size):
        yield start / audio.SAMPLE_RATE, wave[start : start + size]


def _shards(folder: Path) -> ClipSet:
    source = records.open_shards(folder, "audio")
    digest = hashlib.sha256(
        "".join(f"{shard.name} {shard.sha256}\n" for shard in source.manifest.shards).encode()
    )
    clips = []
    for index in range(len(source)):
        meta = records.decode_json(source[index]["meta"])
        captions = meta.get("captions") or [""]
        read = partial(_decode, source, index)
        clips.append(
            Clip(name=str(meta["id"]), read=read, prompt=captions[0], facts=meta.get("facts") or None)
        )
    return ClipSet(where=str(folder), sha256=digest.hexdigest(), clips=clips)


def _decode(source: records.RecordSource, index: int) -> np.ndarray:
    return audio.decode_flac(source[index]["audio"].tobytes())


def _prompts(file: Path) -> dict[str, str]:
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
        return {str(line.get("id", f"{number:06d}")): line["prompt"] for number, line in enumerate(lines)}
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f'{file}: not a file of prompts; a line must be like {{"id": "000000", "prompt": "slow sad cello"}}'
        ) from None


def _manifest_prompts(folder: Path) -> dict[str, str]:
    entries = manifest.read_entries(folder)
    return {
        Path(entry["file"]).stem: entry["prompt"]
        for entry in entries.values()
        if isinstance(entry["prompt"], str)
    }
