"""What a prompt asks for, as far as the composer's own words say it: the ground truth of clips that were generated.

The same facts of a composed piece come from its record. Key is a pitch class, mode "major" or "minor" (their kin
counted with them); of an instrument all that its name may mean.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from melody_jax.composer.phrases.frames import FLATS, METRES
from melody_jax.composer.phrases.genres import GENRES
from melody_jax.composer.phrases.instruments import NAMES
from melody_jax.composer.theory import MINOR_MODES, MODES

_TEMPO = re.compile(r"(\d{2,3}) ?(?:bpm|beats per minute)", re.IGNORECASE)
_KEY = re.compile(rf"\b([A-G](?:#| sharp| flat)?) ({'|'.join(MODES)})\b(?!.key)")
_MODE = re.compile(r"\b(major|minor)[- ]key\b", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:no|without(?: any)?) [^,.;:]*", re.IGNORECASE)
_SHARPS = {flat: sharp for sharp, flat in FLATS.items()}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Facts that a clip should have; None, or none of them, where nothing is said."""

    genre: str | None = None
    instruments: tuple[frozenset[str], ...] = ()
    tempo_bpm: float | None = None
    key: str | None = None
    mode: str | None = None
    metre: str | None = None


def of_facts(facts: dict[str, Any]) -> Asked:
    """What a composed piece is, from its record. Music without a pulse has neither tempo nor metre."""
    rhythmic, mode = facts.get("rhythmic", True), facts.get("mode")
    return Asked(
        genre=facts.get("genre"),
        instruments=tuple(frozenset((name,)) for name in facts.get("instruments", ())),
        tempo_bpm=facts.get("tempo_bpm") if rhythmic else None,
        key=facts.get("key"),
        mode=family(mode) if mode else None,
        metre=facts.get("metre") if rhythmic else None,
    )


def of_text(text: str) -> Asked:
    """What the words of a prompt ask for; words from "no" or "without" to the next comma ask for nothing."""
    wanted = _DENIED.sub(" ", text)
    lower = wanted.lower()
    tempo, key, mode = _TEMPO.search(wanted), _KEY.search(wanted), _MODE.search(wanted)
    tonic = key.group(1).replace(" sharp", "#") if key else None
    genre = _longest(lower, _genre_words())
    spoken_metre = next((metre for metre, ways in METRES.items() if any(way in lower for way in ways)), None)
    return Asked(
        genre=next(iter(genre[0][1])) if genre and len(genre[0][1]) == 1 else None,
        instruments=tuple(meant for _, meant in _longest(_without(lower, genre), _instrument_words())),
        tempo_bpm=float(tempo.group(1)) if tempo else None,
        key=_SHARPS.get(tonic, tonic) if tonic else None,
        mode=family(key.group(2)) if key else mode.group(1).lower() if mode else None,
        metre=spoken_metre,
    )


def family(mode: str) -> str:
    """Which of "major" and "minor" a mode of the composer's is like."""
    return "minor" if mode in MINOR_MODES else "major"


def _longest(text: str, words: dict[str, frozenset[str]]) -> list[tuple[str, frozenset[str]]]:
    """(words, what they mean) that the text has, longer ones first and none within another."""
    found = []
    for word, meant in words.items():
        if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text):
            found.append((word, meant))
            text = _without(text, [(word, meant)])
    return found


def _without(text: str, found: list[tuple[str, frozenset[str]]]) -> str:
    for word, _ in found:
        text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", " ; ", text)
    return text


@lru_cache(maxsize=1)
def _genre_words() -> dict[str, frozenset[str]]:
    return _by_word({name: (name, *words.mass, *words.count) for name, words in GENRES.items()})


@lru_cache(maxsize=1)
def _instrument_words() -> dict[str, frozenset[str]]:
    return _by_word(NAMES)


def _by_word(names: dict[str, tuple[str, ...]]) -> dict[str, frozenset[str]]:
    """Each name in lower case, longest first -> all that it may mean."""
    words = {word.lower() for ways in names.values() for word in ways}
    return {
        word: frozenset(name for name, ways in names.items() if word in map(str.lower, ways))
        for word in sorted(words, key=len, reverse=True)
    }
