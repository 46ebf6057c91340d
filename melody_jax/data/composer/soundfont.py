"""Sampled instruments: General MIDI SoundFonts through FluidSynth, one stem at a time.

One synthesiser lives as long as the process and keeps the fonts it has loaded. It is reset before every stem, and its
own chorus and reverberation are off, so that a stem's bytes depend on its notes, program and font alone.
"""

import ctypes
import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax.audio import SAMPLE_RATE
from melody_jax.errors import UserError

FOLDERS = (Path("/usr/share/sounds/sf2"), Path("/usr/share/sounds/sf3"))
BLOCK = 64
DRUM_BANK, DRUM_CHANNEL = 128, 9
DRUM_PROGRAMS = {"acoustic": (0, 8, 16), "electronic": (24, 25), "808": (25, 24), "brushes": (40, 32), "chip": (24, 25)}


@dataclass(frozen=True)
class Font:
    """A SoundFont we know: its file names, the Debian package, its licence, the splits it may be heard in."""

    name: str
    files: tuple[str, ...]
    package: str
    licence: str
    splits: tuple[str, ...] = ("train", "validation", "test")


FONTS: dict[str, Font] = {
    font.name: font
    for font in (
        Font("FluidR3Mono", ("FluidR3Mono_GM.sf3",), "fluidr3mono-gm-soundfont", "MIT"),
        Font(
            "MuseScoreGeneralLite",
            ("MuseScore_General_Lite.sf3",),
            "musescore-general-soundfont-small",
            "MIT, parts CC0 and public domain",
        ),
        Font("FluidR3", ("FluidR3_GM.sf2",), "fluid-soundfont-gm", "MIT"),
        Font("GMbank", ("sf_GMbank.sf2",), "csound-soundfont", "labelled public domain", ("test",)),
    )
}


def find(name: str) -> Path:
    """Path of the font `name` of `FONTS`. Raises `UserError`, with the package to install, where it is missing."""
    if name not in FONTS:
        raise UserError(f"{name!r} is no SoundFont we know; there are {', '.join(FONTS)}")
    font = FONTS[name]
    for folder in FOLDERS:
        for file in font.files:
            if (folder / file).is_file():
                return folder / file
    raise UserError(f"SoundFont {name} ({font.files[0]}) is not installed: apt-get install {font.package}")


def installed(split: str) -> dict[str, Path]:
    """The fonts that may be heard in `split` (train, validation or test) and are installed, by name."""
    found = {}
    for font in FONTS.values():
        if split in font.splits:
            try:
                found[font.name] = find(font.name)
            except UserError:
                continue
    return found


@functools.lru_cache(maxsize=1)
def library() -> Any:
    """The pyfluidsynth module. Raises `UserError` naming what to install where it or libfluidsynth is missing."""
    try:
        return importlib.import_module("fluidsynth")
    except ModuleNotFoundError as error:
        raise UserError("SoundFonts need pyfluidsynth: pip install 'melody_jax[compose]'") from error
    except (ImportError, OSError) as error:
        raise UserError("SoundFonts need the FluidSynth library: apt-get install libfluidsynth3") from error


class _Synthesiser:
    """FluidSynth with float output at 24 kHz and the fonts loaded so far."""

    def __init__(self) -> None:
        module = library()
        self._synth = module.Synth(
            gain=0.4,
            samplerate=SAMPLE_RATE,
            channels=16,
            **{"synth.reverb.active": 0, "synth.chorus.active": 0, "synth.polyphony": 128, "synth.cpu-cores": 1},
        )
        buffer = [
            (name, kind, 1)
            for name, kind in (("out", ctypes.c_void_p), ("offset", ctypes.c_int), ("step", ctypes.c_int))
        ]
        self._write = module.cfunc(
            "fluid_synth_write_float",
            ctypes.c_int,
            ("synth", ctypes.c_void_p, 1),
            ("length", ctypes.c_int, 1),
            *((f"left_{name}", kind, flag) for name, kind, flag in buffer),
            *((f"right_{name}", kind, flag) for name, kind, flag in buffer),
        )
        self._voices = module.fluid_synth_get_active_voice_count
        self._fonts: dict[Path, int] = {}

    def font(self, path: Path) -> int:
        """FluidSynth's number of the font at `path`, loading it on first use."""
        if path not in self._fonts:
            if not path.is_file():
                known = [font for font in FONTS.values() if path.name in font.files]
                advice = f": apt-get install {known[0].package}" if known else ""
                raise UserError(f"{path}: no such SoundFont{advice}")
            number = self._synth.sfload(str(path))
            if number < 0:
                raise UserError(f"{path}: not a SoundFont that FluidSynth can read")
            self._fonts[path] = number
        return self._fonts[path]

    def select(self, path: Path, channel: int, bank: int, programs: Sequence[int]) -> None:
        """Resets everything, then sets `channel` to the first of `programs` that the font has."""
        number = self.font(path)
        self._synth.system_reset()
        for program in (*programs, 0):
            if self._synth.program_select(channel, number, bank, program) == 0:
                return
        raise UserError(f"{path}: the font has neither programs {list(programs)} nor program 0 in bank {bank}")

    def render(self, channel: int, events: Sequence[tuple[int, int, int]], count: int) -> np.ndarray:
        """Plays events (block, key, velocity or 0 for off), in order of time, into the mean of both sides, (count,)."""
        blocks = -(-count // BLOCK)
        sides = np.zeros((2, blocks * BLOCK), np.float32)
        left, right = sides[0].ctypes.data, sides[1].ctypes.data
        at = 0
        for block, key, velocity in (*events, (blocks, 0, 0)):
            until = min(block, blocks)
            if until > at:
                if self._voices(self._synth.synth):
                    size, offset = (until - at) * BLOCK, at * BLOCK
                    self._write(self._synth.synth, size, left, offset, 1, right, offset, 1)
                at = until
            if at >= blocks:
                break
            if velocity:
                self._synth.noteon(channel, key, velocity)
            else:
                self._synth.noteoff(channel, key)
        return sides.mean(axis=0)[:count]


@functools.lru_cache(maxsize=1)
def _synthesiser() -> _Synthesiser:
    return _Synthesiser()


def _events(notes: Sequence[tuple[float, float, int, int]]) -> list[tuple[int, int, int]]:
    """Ons and offs by block; a note ends before the same key starts again, and offs come before ons."""
    rate = SAMPLE_RATE / BLOCK
    events, following = [], {}
    for start, duration, pitch, velocity in sorted(notes, reverse=True):
        first = round(start * rate)
        last = min(first + max(1, round(duration * rate)), following.get(pitch, 1 << 40))
        following[pitch] = first
        events += [(first, 1, pitch, velocity), (max(last, first + 1), 0, pitch, 0)]
    return [(block, pitch, velocity) for block, _, pitch, velocity in sorted(events)]


def play(path: Path, program: int, notes: Sequence[tuple[float, float, int, int]], count: int) -> np.ndarray:
    """Plays notes (start s, duration s, MIDI pitch, velocity 1..127) with a GM program into float32 (count,).

    Raises `UserError` where the library or the font is missing.
    """
    synthesiser = _synthesiser()
    synthesiser.select(path, 0, 0, (program,))
    return synthesiser.render(0, _events(notes), count)


def play_drums(
    path: Path, kit: str, hits: Sequence[tuple[float, float, int, int]], count: int, seed: int
) -> np.ndarray:
    """Plays hits with the font's kit nearest to `kit`, or its standard kit. Hits as notes, with GM percussion keys."""
    programs = DRUM_PROGRAMS[kit]
    if kit == "acoustic":
        programs = (programs[int(np.random.default_rng([seed, 9]).integers(len(programs)))],)
    synthesiser = _synthesiser()
    synthesiser.select(path, DRUM_CHANNEL, DRUM_BANK, programs)
    long = [(start, max(duration, 0.25), key, velocity) for start, duration, key, velocity in hits]
    return synthesiser.render(DRUM_CHANNEL, _events(long), count)
