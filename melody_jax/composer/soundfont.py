"""Sampled instruments: General MIDI SoundFonts through FluidSynth, one stem at a time.

Fonts are loaded once a process. FluidSynth's own chorus and reverberation are off, and a stem's bytes depend on its
notes, program and font alone, whatever was played before.
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
VOICES = 40
DRUM_BANK, DRUM_CHANNEL = 128, 9
DRUM_PROGRAMS = {
    "acoustic": (0, 8, 16),
    "electronic": (24, 25),
    "808": (25, 24),
    "brushes": (40, 32),
    "chip": (24, 25),
}


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


class _Fonts:
    """Fonts loaded once a process, and stems played from them.

    A voice's first block depends a little on what the voice played before, even after a reset, so every stem has a new
    synthesiser (1 ms), lent the fonts of one that lives on but never plays.
    """

    def __init__(self) -> None:
        self._library = library()
        # Warnings about presets no longer lent, and errors that become a `UserError`, would fill the terminal.
        silence = self._library.cfunc(
            "fluid_set_log_function",
            ctypes.c_void_p,
            ("level", ctypes.c_int, 1),
            ("function", ctypes.c_void_p, 1),
            ("data", ctypes.c_void_p, 1),
        )
        for level in (1, 2):
            silence(level, None, None)
        self._keeper = self._synthesiser()
        self._loaded: dict[Path, Any] = {}
        pointer, number = ctypes.c_void_p, ctypes.c_int
        sides = [
            (f"{side}_{part}", kind, 1)
            for side in "lr"
            for part, kind in zip("bos", (pointer, number, number), strict=True)
        ]
        self._write = self._function("fluid_synth_write_float", ("length", number, 1), *sides)
        self._lend = self._function("fluid_synth_add_sfont", ("font", pointer, 1))
        self._take_back = self._function("fluid_synth_remove_sfont", ("font", pointer, 1))
        self._get = self._library.cfunc(
            "fluid_synth_get_sfont_by_id", pointer, ("synth", pointer, 1), ("number", number, 1)
        )

    def _function(self, name: str, *parameters: tuple[str, Any, int]) -> Any:
        return self._library.cfunc(name, ctypes.c_int, ("synth", ctypes.c_void_p, 1), *parameters)

    def _synthesiser(self) -> Any:
        settings = {
            "synth.reverb.active": 0,
            "synth.chorus.active": 0,
            "synth.polyphony": VOICES,
            "synth.cpu-cores": 1,
        }
        return self._library.Synth(gain=0.4, samplerate=SAMPLE_RATE, channels=16, **settings)

    def _font(self, path: Path) -> Any:
        """FluidSynth's font object for `path`, loaded on first use."""
        if path not in self._loaded:
            if not path.is_file():
                known = [font for font in FONTS.values() if path.name in font.files]
                raise UserError(
                    f"{path}: no such SoundFont{f': apt-get install {known[0].package}' if known else ''}"
                )
            number = self._keeper.sfload(str(path))
            if number < 0:
                raise UserError(f"{path}: not a SoundFont that FluidSynth can read")
            self._loaded[path] = self._get(self._keeper.synth, number)
        return self._loaded[path]

    def play(
        self,
        path: Path,
        channel: int,
        bank: int,
        programs: Sequence[int],
        events: Sequence[tuple[int, int, int]],
        count: int,
    ) -> np.ndarray:
        """Plays events with the first of `programs` that the font has; returns the mean of both sides, (count,)."""
        font = self._font(path)
        player = self._synthesiser()
        try:
            number = self._lend(player.synth, font)
            if all(player.program_select(channel, number, bank, program) != 0 for program in (*programs, 0)):
                raise UserError(
                    f"{path}: the font has neither programs {list(programs)} nor program 0 in bank {bank}"
                )
            return self._render(player, channel, events, count)
        finally:
            self._take_back(player.synth, font)
            player.delete()

    def _render(
        self, player: Any, channel: int, events: Sequence[tuple[int, int, int]], count: int
    ) -> np.ndarray:
        """Plays (block, key, velocity or 0 for off) in order of time; nothing is worked out while no voice sounds."""
        blocks = -(-count // BLOCK)
        sides = np.zeros((2, blocks * BLOCK), np.float32)
        left, right = sides[0].ctypes.data, sides[1].ctypes.data
        at = 0
        for block, key, velocity in (*events, (blocks, 0, 0)):
            until = min(block, blocks)
            if until > at:
                if self._library.fluid_synth_get_active_voice_count(player.synth):
                    self._write(player.synth, (until - at) * BLOCK, left, at * BLOCK, 1, right, at * BLOCK, 1)
                at = until
            if at >= blocks:
                break
            if velocity:
                player.noteon(channel, key, velocity)
            else:
                player.noteoff(channel, key)
        return sides.mean(axis=0)[:count]


@functools.lru_cache(maxsize=1)
def _fonts() -> _Fonts:
    return _Fonts()


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
    return _fonts().play(path, 0, 0, (program,), _events(notes), count)


def play_drums(
    path: Path, kit: str, hits: Sequence[tuple[float, float, int, int]], count: int, seed: int
) -> np.ndarray:
    """Plays hits with the font's kit nearest to `kit`, or its standard kit. Hits as notes, with GM percussion keys."""
    programs = DRUM_PROGRAMS[kit]
    if kit == "acoustic":
        programs = (programs[int(np.random.default_rng([seed, 9]).integers(len(programs)))],)
    long = [(start, max(duration, 0.25), key, velocity) for start, duration, key, velocity in hits]
    return _fonts().play(path, DRUM_CHANNEL, DRUM_BANK, programs, _events(long), count)
