"""Sampled instruments: General MIDI SoundFonts through FluidSynth, one stem at a time.

Each process loads a font once. FluidSynth's chorus and reverberation are off, and the bytes of a stem depend only on
its notes, program and font, not on what was played before.
"""

import ctypes
import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.composer.clock import Clock
from melody_jax.errors import UserError
from melody_jax.extras import install_hint

FOLDERS = (Path("/usr/share/sounds/sf2"), Path("/usr/share/sounds/sf3"))
BLOCK = 64
VOICES = 40
DRUM_BANK = 128
DRUM_CHANNEL = 9
DRUM_PROGRAMS = {
    "acoustic": (0, 8, 16),
    "electronic": (24, 25),
    "808": (25, 24),
    "brushes": (40, 32),
    "chip": (24, 25),
}


@dataclass(frozen=True)
class Font:
    """A supported SoundFont: its file names, Debian package, licence, and the splits that may use it."""

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
    """Returns the path of the font `name` of `FONTS`.

    Raises:
        UserError: the name is unknown, or the font is not installed; the message names the package.
    """
    if name not in FONTS:
        raise UserError(f"{name!r} is not a supported SoundFont; use one of {', '.join(FONTS)}")
    font = FONTS[name]
    for folder in FOLDERS:
        for file in font.files:
            if (folder / file).is_file():
                return folder / file
    raise UserError(f"SoundFont {name} ({font.files[0]}) is not installed: apt-get install {font.package}")


def installed(split: str) -> dict[str, Path]:
    """Returns the installed fonts, by name, that `split` (train, validation or test) may use."""
    paths = {}
    for font in FONTS.values():
        if split in font.splits:
            try:
                paths[font.name] = find(font.name)
            except UserError:
                continue
    return paths


@functools.lru_cache(maxsize=1)
def library() -> ModuleType:
    """Returns the pyfluidsynth module.

    Raises:
        UserError: pyfluidsynth or libfluidsynth is missing; the message says how to install it.
    """
    try:
        return importlib.import_module("fluidsynth")
    except ModuleNotFoundError as error:
        raise UserError(f"SoundFonts need pyfluidsynth: {install_hint('fluidsynth')}") from error
    except (ImportError, OSError) as error:
        raise UserError("SoundFonts need the FluidSynth library: apt-get install libfluidsynth3") from error


class _Fonts:
    """Loaded fonts, and stems played from them.

    The first block of a voice depends slightly on what the voice played before, even after a reset. Every stem
    therefore gets a new synthesiser (1 ms), which borrows the fonts of one that persists but never plays.
    """

    def __init__(self) -> None:
        self._library = library()
        # FluidSynth warns about returned presets, and its errors become a `UserError`.
        silence = self._library.cfunc(
            "fluid_set_log_function",
            ctypes.c_void_p,
            ("level", ctypes.c_int, 1),
            ("function", ctypes.c_void_p, 1),
            ("data", ctypes.c_void_p, 1),
        )
        for level in (1, 2):
            silence(level, None, None)
        self._keeper = self._synthesiser(SAMPLE_RATE)
        self._loaded: dict[Path, Any] = {}
        pointer = ctypes.c_void_p
        number = ctypes.c_int
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

    def _synthesiser(self, sample_rate: int) -> Any:
        settings = {
            "synth.reverb.active": 0,
            "synth.chorus.active": 0,
            "synth.polyphony": VOICES,
            "synth.cpu-cores": 1,
        }
        return self._library.Synth(gain=0.4, samplerate=sample_rate, channels=16, **settings)

    def _font(self, path: Path) -> Any:
        """FluidSynth's font object for `path`, loaded on first use."""
        if path not in self._loaded:
            if not path.is_file():
                packages = [font.package for font in FONTS.values() if path.name in font.files]
                hint = f": apt-get install {packages[0]}" if packages else ""
                raise UserError(f"{path}: no such SoundFont{hint}")
            number = self._keeper.sfload(str(path))
            if number < 0:
                raise UserError(f"{path}: not a SoundFont that FluidSynth can read")
            self._loaded[path] = self._get(self._keeper.synth, number)
        return self._loaded[path]

    def play(
        self,
        clock: Clock,
        path: Path,
        channel: int,
        bank: int,
        programs: Sequence[int],
        events: Sequence[tuple[int, int, int]],
        count: int,
    ) -> np.ndarray:
        """Plays events with the first of `programs` that the font has; returns left and right, (2, count)."""
        font = self._font(path)
        player = self._synthesiser(clock.sample_rate)
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
        """Plays (block, key, velocity or 0 for note-off) in order of time; silence is not computed."""
        blocks = -(-count // BLOCK)
        sides = np.zeros((2, blocks * BLOCK), np.float32)
        left = sides[0].ctypes.data
        right = sides[1].ctypes.data
        position = 0
        for block, key, velocity in (*events, (blocks, 0, 0)):
            until = min(block, blocks)
            if until > position:
                if self._library.fluid_synth_get_active_voice_count(player.synth):
                    self._write(
                        player.synth,
                        (until - position) * BLOCK,
                        left,
                        position * BLOCK,
                        1,
                        right,
                        position * BLOCK,
                        1,
                    )
                position = until
            if position >= blocks:
                break
            if velocity:
                player.noteon(channel, key, velocity)
            else:
                player.noteoff(channel, key)
        return sides[:, :count]


@functools.lru_cache(maxsize=1)
def _fonts() -> _Fonts:
    return _Fonts()


def _events(clock: Clock, notes: Sequence[tuple[float, float, int, int]]) -> list[tuple[int, int, int]]:
    """Note-ons and note-offs by block; a note ends before its key starts again, and note-offs precede note-ons."""
    rate = clock.sample_rate / BLOCK
    events = []
    following = {}
    for start, duration, pitch, velocity in sorted(notes, reverse=True):
        first = round(start * rate)
        last = min(first + max(1, round(duration * rate)), following.get(pitch, 1 << 40))
        following[pitch] = first
        events += [(first, 1, pitch, velocity), (max(last, first + 1), 0, pitch, 0)]
    return [(block, pitch, velocity) for block, _, pitch, velocity in sorted(events)]


def play(
    clock: Clock, path: Path, program: int, notes: Sequence[tuple[float, float, int, int]], count: int
) -> np.ndarray:
    """Plays notes (start s, duration s, MIDI pitch, velocity 1..127) with a GM program; returns float32 (2, count).

    Raises:
        UserError: the library or the font is missing.
    """
    return _fonts().play(clock, path, 0, 0, (program,), _events(clock, notes), count)


def play_drums(
    clock: Clock, path: Path, kit: str, hits: Sequence[tuple[float, float, int, int]], count: int, seed: int
) -> np.ndarray:
    """Plays hits (notes with GM percussion keys) with the font's nearest kit to `kit`; returns float32 (2, count)."""
    programs = DRUM_PROGRAMS[kit]
    if kit == "acoustic":
        programs = (programs[int(np.random.default_rng([seed, 9]).integers(len(programs)))],)
    long = [(start, max(duration, 0.25), key, velocity) for start, duration, key, velocity in hits]
    return _fonts().play(clock, path, DRUM_CHANNEL, DRUM_BANK, programs, _events(clock, long), count)
