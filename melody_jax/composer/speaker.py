"""Fills the slots of caption frames from the facts of a piece, never with anything that is not true of it."""

import functools
import re
from collections.abc import Sequence

from melody_jax.composer.dice import Dice
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.phrases import frames, genre_words, instrument_words, mood_words
from melody_jax.composer.phrases.schema import GenreWords, MoodWords
from melody_jax.composer.piece import Facts

_VOWELS = re.compile(r"(?:[aeio]|un|up|8|11\b|18|80|hour|honest)", re.IGNORECASE)
_CONSONANTS = re.compile(r"(?:eu|one|uni[^n])", re.IGNORECASE)
_QUIET_MOODS = frozenset(
    ("calm", "peaceful", "relaxed", "dreamy", "sad", "melancholic", "nostalgic", "romantic")
)


def with_articles(text: str) -> str:
    """Replaces each `@` by "a" or "an"."""

    def article(match: re.Match[str]) -> str:
        rest = text[match.end() :]
        vowel = _VOWELS.match(rest) and not _CONSONANTS.match(rest)
        return "an " if vowel else "a "

    return re.sub(r"@ ", article, text)


@functools.cache
def _slots(frame: str) -> tuple[str, ...]:
    return tuple(re.findall(r"{(\w+)}", frame))


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


class Speaker:
    """Fills the slots of frames from the facts; each slot is a method, and `mentioned` collects the aspects so far."""

    ASPECTS = (
        dict.fromkeys(("lead", "alead", "solo", "other", "list", "all"), "instruments")
        | {"bpm": "number", "key": "key", "tempo": "tempo", "pace": "tempo", "use": "use"}
        | {"missing": "missing", "metre": "metre", "energy": "energy", "feeling": "feeling"}
    )

    def __init__(self, facts: Facts, dice: Dice):
        self.facts = facts
        self.dice = dice
        self.mentioned: set[str] = set()
        self._used: set[str] = set()
        plain = (facts.genre, f"{facts.genre} music"), (f"{facts.genre} piece", f"{facts.genre} track")
        self.genre = genre_words.GENRES.get(facts.genre) or GenreWords(*plain)
        self.genre_name = facts.genre
        if facts.genre == "acoustic guitar" and "guitar" not in facts.lead:
            self.genre = genre_words.PLUCKED
            self.genre_name = f"{facts.lead} music"
        plain_mood = MoodWords((facts.mood,), (f"a {facts.mood} mood",), (), 0)
        self.moods = mood_words.MOODS.get(facts.mood, plain_mood)
        self.others = tuple(name for name in facts.instruments if name != facts.lead)
        self.sung = bool(instrument_words.VOICES & set(facts.instruments))
        self.lead_is_genre = facts.lead.split()[-1] in self.genre_name

    def has_mentioned(self, aspect: str) -> bool:
        """Whether the caption mentions an aspect already; a genre that names the only instrument mentions it too."""
        return aspect in self.mentioned or (
            aspect == "instruments" and self.lead_is_genre and not self.others
        )

    def can_fill(self, frame: str) -> bool:
        """Whether the facts have values for all slots of the frame."""
        slots = _slots(frame)
        if "instrumental" in frame and self.sung:
            return False
        if self.lead_is_genre and {"lead", "alead", "solo"} & set(slots) and {"mass", "count"} & set(slots):
            return False
        return all(self._has(slot) for slot in slots)

    def _has(self, slot: str) -> bool:
        facts = self.facts
        if slot in ("other", "list"):
            return bool(self.others)
        if slot == "solo":
            return bool(self._singular())
        if slot == "bpm":
            return facts.rhythmic
        if slot == "metre":
            return facts.metre in frames.METRES and facts.rhythmic
        if slot == "mood_b":
            return len(self.moods.adjectives) > 2
        if slot == "era":
            return bool(self.genre.eras)
        available = {"use": self._scenes, "missing": self._missing, "extra": self._extras}
        return bool(available[slot]()) if slot in available else True

    def fill(self, frame: str) -> str:
        """The frame with its slots filled and its articles chosen."""

        def value(match: re.Match[str]) -> str:
            slot = match[1]
            if slot in self.ASPECTS:
                self.mentioned.add(self.ASPECTS[slot])
            return getattr(self, slot)()

        return with_articles(re.sub(r"{(\w+)}", value, frame))

    def _fresh(self, options: Sequence[str]) -> str:
        """One of the options; none is repeated in a caption while others are unused."""
        choice = self.dice.among([option for option in options if option not in self._used] or options)
        self._used.add(choice)
        return choice

    def mass(self) -> str:
        """A name of the genre without an article."""
        return self._fresh([name for name in self.genre.mass if not (self.sung and "instrumental" in name)])

    def count(self) -> str:
        """The genre as a countable noun."""
        return self._fresh([name for name in self.genre.count if not (self.sung and "instrumental" in name)])

    def mood(self) -> str:
        """An adjective for the mood."""
        return self._fresh(self.moods.adjectives)

    mood_b = mood

    def mood1(self) -> str:
        """A mood adjective that "very" can precede."""
        return self._fresh(
            [word for word in self.moods.adjectives if word.isalpha()] or self.moods.adjectives
        )

    def feeling(self) -> str:
        """A noun for the mood."""
        return self._fresh(self.moods.nouns)

    def energy(self) -> str:
        """A remark about the energy."""
        return self._fresh(frames.ENERGY_TAILS.get(self.facts.energy, (f"{self.facts.energy} energy",)))

    energy_tail = energy

    def era(self) -> str:
        """An adjective for the era of the genre."""
        return self._fresh(self.genre.eras)

    def extra(self) -> str:
        """An adjective that follows from several facts."""
        return self._fresh(self._extras())

    def adj(self) -> str:
        """One to three adjectives: mood, tempo, energy, and adjectives that follow from several facts."""
        dice = self.dice
        words = [self.mood()] if dice.chance(0.8) else []
        if "tempo" not in self.mentioned and dice.chance(0.3 if words else 0.7):
            words.append(self.tempo())
            self.mentioned.add("tempo")
        if self._extras() and dice.chance(0.2):
            words.append(self.extra())
        elif "energy" not in self.mentioned and dice.chance(0.1):
            words.append(self._fresh(frames.ENERGY.get(self.facts.energy, (f"{self.facts.energy}-energy",))))
            self.mentioned.add("energy")
        words = words or [self.mood()]
        if self.genre.eras and dice.chance(0.12):
            words.append(self.era())
        return (", " if dice.chance(0.7) else " ").join(dict.fromkeys(words[-3:]))

    def tempo(self) -> str:
        """An adjective for the tempo."""
        return self._fresh(self._tempo_words[0])

    def pace(self) -> str:
        """An adverbial for the tempo."""
        return self._fresh(self._tempo_words[1])

    @functools.cached_property
    def _tempo_words(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        words = next(
            entry for entry in frames.TEMPO if self.facts.tempo_bpm < entry[0] or entry is frames.TEMPO[-1]
        )
        return words[1], words[2]

    def bpm(self) -> str:
        """Beats per minute: exact, or rounded to the nearest five."""
        exact = round(self.facts.tempo_bpm)
        rounded = 5 * round(self.facts.tempo_bpm / 5)
        forms = {f"{exact} bpm": 6, f"{exact}bpm": 1, f"{exact} BPM": 2, f"{exact} beats per minute": 1.5}
        forms |= {f"about {rounded} bpm": 1, f"around {rounded} bpm": 1, f"roughly {rounded} bpm": 0.5}
        return self.dice.pick(forms)

    def key(self) -> str:
        """The key: tonic and mode, or only major or minor."""
        facts = self.facts
        dice = self.dice
        tonic = facts.key.replace("#", " sharp" if dice.chance(0.4) else "#")
        tonic = frames.FLATS.get(facts.key, tonic) if dice.chance(0.5) else tonic
        forms = {f"{tonic} {facts.mode}": 3, f"the key of {tonic} {facts.mode}": 1}
        if facts.mode in frames.MINOR_MODES | frames.MAJOR_MODES:
            forms[f"a {'minor' if facts.mode in frames.MINOR_MODES else 'major'} key"] = 3
        return dice.pick(forms)

    def metre(self) -> str:
        """The metre, as an adverbial."""
        return self._fresh(frames.METRES[self.facts.metre])

    def lead(self) -> str:
        """The leading instrument."""
        return self._fresh(instrument_words.NAMES.get(self.facts.lead, (self.facts.lead,)))

    def alead(self) -> str:
        """The leading instrument with its article."""
        name = self.lead()
        return name if name in instrument_words.UNCOUNTABLE else f"@ {name}"

    def solo(self) -> str:
        """The leading instrument, by a singular name."""
        return self._fresh(self._singular())

    def _singular(self) -> list[str]:
        names = instrument_words.NAMES.get(self.facts.lead, (self.facts.lead,))
        return [name for name in names if name not in instrument_words.UNCOUNTABLE]

    def other(self) -> str:
        """An instrument that is not the lead."""
        return self._name(self.dice.among(self.others[:4]))

    def list(self) -> str:
        """The lead and one to three other instruments, in order of prominence."""
        chosen = self.others[: self.dice.integer(1, min(3, len(self.others)))]
        if "drums" in self.others and "drums" not in chosen and self.dice.chance(0.5):
            chosen = (*chosen[:2], "drums")
        return _join(list(dict.fromkeys([self._name(self.facts.lead), *map(self._name, chosen)])))

    def all(self) -> str:
        """Every instrument."""
        return _join(list(dict.fromkeys(map(self._name, self.facts.instruments))))

    def _name(self, instrument: str) -> str:
        names = instrument_words.NAMES.get(instrument, (instrument,))
        return names[0] if self.dice.chance(0.5) else self.dice.among(names)

    def use(self) -> str:
        """A scene that the music would suit."""
        return self._fresh(self._scenes())

    def _scenes(self) -> tuple[str, ...]:
        """Scenes of the mood; those of the genre and the energy are added unless the mood is dark."""
        clash = self.facts.energy == "high" and self.facts.mood in _QUIET_MOODS
        mood_scenes = () if clash else self.moods.scenes
        if self.moods.valence < 0 and mood_scenes:
            return mood_scenes
        return (
            mood_scenes + self.genre.scenes + ((), frames.ENERGY_SCENES.get(self.facts.energy, ()))[not clash]
        )

    def missing(self) -> str:
        """Something that the piece lacks."""
        return self._fresh(self._missing())

    def _missing(self) -> tuple[str, ...]:
        names = self.facts.instruments
        families = {INSTRUMENTS[name].family for name in names if name in INSTRUMENTS}
        missing: list[str] = []
        if (
            not any("drum" in name or name in instrument_words.PERCUSSION for name in names)
            and "mallets" not in families
        ):
            missing += 2 * instrument_words.NO_DRUMS
        if not any(name in instrument_words.VOICES or "vo" in name for name in names):
            missing += instrument_words.NO_VOICES
        if not self.genre.electronic and not {"synths", "pads", "chip"} & families:
            missing += () if instrument_words.SYNTHETIC & set(names) else instrument_words.NO_SYNTHS
        for what, phrases in instrument_words.ABSENT.items():
            if not any(word in name for word in instrument_words.ABSENT_WORDS[what] for name in names):
                missing += phrases
        return tuple(missing)

    def _extras(self) -> tuple[str, ...]:
        """Adjectives that are true for certain combinations of facts."""
        facts = self.facts
        names = set(self.facts.instruments)
        drums = "drums" in names
        bright = self.moods.valence > 0
        loud = facts.energy == "high"
        tempo = facts.tempo_bpm
        rules = {
            "upbeat": bright and facts.energy != "low" and tempo >= 100 and facts.rhythmic,
            "driving": loud and tempo >= 112 and facts.rhythmic and drums,
            "laid-back": facts.energy != "high" and tempo <= 104 and self.moods.valence >= 0,
            "mellow": facts.energy == "low" and self.moods.valence >= 0,
            "heavy": loud and bool(names & {"distorted guitar", "overdriven guitar"}),
            "danceable": self.genre.danceable and facts.rhythmic and drums,
            "four-on-the-floor": self.genre.four_on_the_floor and facts.rhythmic and drums,
            "beatless": not facts.rhythmic and not drums,
            "acoustic": not drums and not names & (instrument_words.SYNTHETIC | instrument_words.AMPLIFIED),
            "electronic": self.genre.electronic,
            "instrumental": not self.sung,
            "minor-key": facts.mode in frames.MINOR_MODES,
            "major-key": facts.mode in frames.MAJOR_MODES,
        }
        return tuple(word for word, holds in rules.items() if holds)
