"""Prompts with known music: 16 groups of composed pieces, the committed list of test prompts, and their true
clips."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import files
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.composer import soundfont
from melody_jax.composer.captions import captions
from melody_jax.composer.compose import compose
from melody_jax.composer.phrases.genre_words import GENRES
from melody_jax.composer.phrases.instrument_words import NAMES
from melody_jax.composer.piece import Piece
from melody_jax.composer.prompt_facts import PromptFacts
from melody_jax.composer.render import render
from melody_jax.errors import UserError
from melody_jax.files import write_bytes
from melody_jax.sampling.settings import MAX_SEED, check_settings, shorten

PROMPTS = Path(__file__).parents[1] / "assets" / "prompts.jsonl"
"""The committed list: 10 prompts of each group."""
VERSION = 1
"""Version of the composed music: raise it when a piece gets other notes or another sound."""
SECONDS = 10.24
"""Length of the composed pieces: one window of the shipped model."""
FASTEST_BPM = 1000
"""Largest tempo of a prompt in a list."""
MAX_WORDS = 40
"""Longest caption that becomes a prompt."""


@dataclass(frozen=True)
class MusicGroup:
    """Music with a common genre or lead instrument; exactly one of the two is set."""

    genre: str | None = None
    lead: str | None = None

    @property
    def name(self) -> str:
        """Name of the group in tables."""
        return self.genre or str(self.lead)

    @property
    def words(self) -> tuple[str, ...]:
        """Words of which any in a prompt asks for the group."""
        if self.genre:
            return (self.genre, *GENRES[self.genre].mass)
        return NAMES[self.name][:3]  # other instruments share the later names


GROUPS = (
    *(MusicGroup(genre=name) for name in ("solo piano", "jazz", "metal", "techno", "ambient", "orchestral", "reggae",
                                          "chiptune", "drum and bass", "baroque")),
    *(MusicGroup(lead=name) for name in ("acoustic guitar", "violin", "flute", "saxophone", "accordion", "music box")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ComposedPrompt:
    """One line of the list: a caption of a piece from the test split."""

    group: str
    """Name of the group."""
    text: str
    """The caption."""
    seed: int
    """Seed of the piece."""
    tempo_bpm: float
    """Tempo of the piece."""
    rhythmic: bool
    """Whether the piece has a beat."""

    @property
    def facts(self) -> PromptFacts:
        """What the group judge scores: the group and, for music with a beat, the tempo."""
        return PromptFacts(group=self.group, tempo_bpm=self.tempo_bpm if self.rhythmic else None)


def pieces(group: MusicGroup, split: str, seed: int, seconds: float) -> Iterator[Piece]:
    """Endless pieces of a group. Pieces with a lead instrument have genres that are not groups themselves."""
    group_genres = {other.genre for other in GROUPS if other.genre}
    while True:
        piece = compose(seed, seconds, genre=group.genre, lead=group.lead, split=split)
        seed += 1
        if group.genre or piece.facts.genre not in group_genres:
            yield piece


def make_prompts(group: MusicGroup, count: int, seed: int, seconds: float) -> list[ComposedPrompt]:
    """Prompts of the test split: the first caption of a piece that names the genre or instrument of the
    group."""
    prompts: list[ComposedPrompt] = []
    for piece in pieces(group, "test", seed, seconds):
        matching = [
            caption
            for caption in captions(piece.facts, piece.seed, 12)
            if any(word in caption.lower() for word in group.words)
        ]
        if matching and len(matching[0].split()) <= MAX_WORDS:
            prompt = ComposedPrompt(
                group=group.name,
                text=matching[0],
                seed=piece.seed,
                tempo_bpm=piece.facts.tempo_bpm,
                rhythmic=piece.facts.rhythmic,
            )
            prompts.append(prompt)
        if len(prompts) == count:
            return prompts
    raise AssertionError("unreachable: pieces() never ends")


def read_prompts(file: Path) -> list[ComposedPrompt]:
    """Reads a list of prompts, one JSON object per line; blank lines do not count.

    Raises:
        UserError: the file is missing or has no prompts, or a line is malformed; the error names the line.
    """
    prompts: list[ComposedPrompt] = []
    for number, line in enumerate(files.split_lines(files.read_text(file)), start=1):
        if line.strip():
            place = f"{file}, line {number}"
            values = files.parse_json(line, place)
            try:
                prompts.append(_parse_prompt(values))
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
    if not prompts:
        raise UserError(
            f"{file}: no composed prompts; `melody diagnose` writes a list if there is no such file"
        )
    return prompts


def _parse_prompt(values: Any) -> ComposedPrompt:
    """Raises `UserError` for values that are not those of a line."""
    names = [field.name for field in dataclasses.fields(ComposedPrompt)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise UserError(f"{shorten(values)}; it must be an object with {', '.join(names)}")
    prompt = ComposedPrompt(**values)
    check_settings(prompt)
    groups = sorted(group.name for group in GROUPS)
    if prompt.group not in groups:
        raise UserError(f"unknown group {shorten(prompt.group)}; the groups are {', '.join(groups)}")
    if not prompt.text.strip():
        raise UserError("text is empty; it must be a caption")
    if not 0 <= prompt.seed <= MAX_SEED:
        raise UserError(f"seed is {shorten(prompt.seed)}; it must be from 0 to {MAX_SEED:,}")
    if not 0 < prompt.tempo_bpm <= FASTEST_BPM:
        raise UserError(
            f"tempo_bpm is {shorten(prompt.tempo_bpm)}; it must be above 0 and at most {FASTEST_BPM:,}"
        )
    return prompt


def write_prompts(file: Path, count: int = 10) -> None:
    """Writes the committed list: `count` prompts for each group, from pieces of the test split."""
    lines = [
        json.dumps(dataclasses.asdict(prompt))
        for i, group in enumerate(GROUPS)
        for prompt in make_prompts(group, count, 90_000_000 + 10_000 * i, SECONDS)
    ]
    write_bytes(file, ("\n".join(lines) + "\n").encode())


def ground_truth(
    prompt: ComposedPrompt, number: int, seconds: float, audio_format: AudioFormat = DEFAULT_FORMAT
) -> np.ndarray:
    """The first `seconds` of the piece of a prompt, (T,) or (T, 2); `number` selects a SoundFont of the test split."""
    piece = compose_piece(prompt)
    return render_with(piece, "test", number, audio_format)[: round(seconds * audio_format.sample_rate)]


def compose_piece(prompt: ComposedPrompt, seconds: float = SECONDS, tempo: float | None = None) -> Piece:
    """The piece of a prompt; at another length or tempo a different one of the same group."""
    group = next(group for group in GROUPS if group.name == prompt.group)
    return compose(prompt.seed, seconds, genre=group.genre, lead=group.lead, split="test", tempo=tempo)


def rendering_hash(split: str) -> str:
    """Hash of what `render_with` depends on besides the piece: the version and the installed SoundFonts of a split."""
    fonts = {name: files.file_hash(path) for name, path in sorted(soundfont.installed(split).items())}
    return hashlib.sha256(json.dumps([VERSION, fonts]).encode()).hexdigest()


def render_with(
    piece: Piece, split: str, number: int, audio_format: AudioFormat = DEFAULT_FORMAT
) -> np.ndarray:
    """Renders a piece, (T,) or (T, 2), with the split's SoundFont that `number` selects, or with the built-in
    synthesiser."""
    fonts = sorted(soundfont.installed(split).items())
    return render(piece, fonts[number % len(fonts)][1] if fonts else None, audio_format)
