"""The facts that a prompt asks for, read from its words with the composer's vocabulary: ground truth of
generated clips.

The facts of a composed piece come from its record instead.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from melody_jax.composer.facts import without_absent_pulse
from melody_jax.composer.form import METRES as METRE_NAMES
from melody_jax.composer.phrases.frames import METRES
from melody_jax.composer.phrases.genre_words import GENRES
from melody_jax.composer.phrases.instrument_words import NAMES
from melody_jax.composer.theory import MINOR_MODES, MODES
from melody_jax.control_tokens import parse_key

_TEMPO = re.compile(
    r"(?<![\d.])(\d{2,3}(?:\.\d+)?)[ -]?(?:bpms?|beats (?:per|a) minute)\b"
    r"|\b(?:bpm|tempo)(?: of| is)?\W{1,2}(\d{2,3}(?:\.\d+)?)(?![\d.]*\d)",
    re.IGNORECASE,
)
"""A number before or after the words that make it a tempo."""
_KEY = re.compile(rf"\b([A-G](?:#|♯|b|♭|[ -]sharp|[ -]flat)?)[ -]((?i:{'|'.join(MODES)}))\b(?!.key)")
_ARTICLE = re.compile(r"A (?:major|minor) +[a-z]")
"""Words in which "A" is no note, unless "in" or "of" precedes it: "A major hit"."""
_METRE = re.compile(r"(?<![\d/])(\d{1,2}/\d{1,2})(?![\d/])")
_MODE = re.compile(r"\b(major|minor)[- ]key\b", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:no|not in|without(?: any)?) [^,.;:]*", re.IGNORECASE)
_IN = re.compile(r"\b(?:in|of)\s+$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PromptFacts:
    """Facts that a clip should have; None or empty if the prompt does not mention them."""

    group: str | None = None
    """Group of the committed prompt (`composed_prompts.GROUPS`)."""
    genre: str | None = None
    """Genre of the composer."""
    instruments: tuple[frozenset[str], ...] = ()
    """For every mentioned instrument name the instruments that it may mean."""
    tempo_bpm: float | None = None
    """Tempo in beats per minute."""
    key: str | None = None
    """Pitch class of the tonic, with sharps."""
    mode: str | None = None
    """Mode: a name of `MODES`."""
    metre: str | None = None
    """Metre, such as "3/4"."""

    @property
    def mode_family(self) -> str | None:
        """ "major" or "minor", whichever the mode belongs to."""
        return mode_family(self.mode) if self.mode else None


def of_facts(facts: dict[str, Any]) -> PromptFacts:
    """The facts in the record of a composed piece. Music without a pulse has neither tempo nor metre."""
    facts = without_absent_pulse(facts)
    return PromptFacts(
        genre=facts.get("genre"),
        instruments=tuple(frozenset((name,)) for name in facts.get("instruments", ())),
        tempo_bpm=facts.get("tempo_bpm"),
        key=facts.get("key"),
        mode=facts.get("mode"),
        metre=facts.get("metre"),
    )


def of_text(text: str) -> PromptFacts:
    """The facts that a prompt mentions; words from "no" or "without" to the next comma are ignored."""
    affirmed = _NEGATED.sub(" ", text)
    lower = affirmed.lower()
    tempo = _TEMPO.search(affirmed)
    key = _KEY.search(affirmed)
    mode = _MODE.search(affirmed)
    if key and _ARTICLE.match(affirmed, key.start()) and not _IN.search(affirmed[: key.start()]):
        key = None
    tonic = parse_key(key.group(1).replace("-", " "))["key"] if key else None
    genres = _longest_matches(lower, _genre_words())
    instruments = _longest_matches(_remove(lower, [word for word, _ in genres]), _instrument_words())
    metre = next((name for name, phrases in METRES.items() if any(one in lower for one in phrases)), None)
    written = [name for name in _METRE.findall(affirmed) if name in METRE_NAMES]
    return PromptFacts(
        genre=next(iter(genres[0][1])) if genres and len(genres[0][1]) == 1 else None,
        instruments=tuple(meanings for _, meanings in instruments),
        tempo_bpm=float(tempo.group(1) or tempo.group(2)) if tempo else None,
        key=tonic,
        mode=key.group(2).lower() if key else mode.group(1).lower() if mode else None,
        metre=metre or next(iter(written), None),
    )


def mode_family(mode: str) -> str:
    """ "major" or "minor": the family of one of the composer's modes."""
    return "minor" if mode in MINOR_MODES else "major"


def _longest_matches(text: str, words: dict[str, frozenset[str]]) -> list[tuple[str, frozenset[str]]]:
    """(word, meanings) of the words in the text, longer words first, none inside another."""
    matches = []
    for word, meanings in words.items():
        if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text):
            matches.append((word, meanings))
            text = _remove(text, [word])
    return matches


def _remove(text: str, words: list[str]) -> str:
    for word in words:
        text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", " ; ", text)
    return text


@lru_cache(maxsize=1)
def _genre_words() -> dict[str, frozenset[str]]:
    return _by_word({name: (name, *words.mass, *words.count) for name, words in GENRES.items()})


@lru_cache(maxsize=1)
def _instrument_words() -> dict[str, frozenset[str]]:
    return _by_word(NAMES)


def _by_word(names: dict[str, tuple[str, ...]]) -> dict[str, frozenset[str]]:
    """Every word in lower case, longest first -> the names that it may mean."""
    words = {word.lower() for synonyms in names.values() for word in synonyms}
    return {
        word: frozenset(name for name, synonyms in names.items() if word in map(str.lower, synonyms))
        for word in sorted(words, key=len, reverse=True)
    }
