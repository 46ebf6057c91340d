"""The kinds of words that captions need for a genre and for a mood."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GenreWords:
    """Words for one genre.

    `mass` are names without an article ("some bossa nova"), `count` are nouns with one ("a bossa nova tune"), `scenes`
    follow "music for", `eras` precede either name. `danceable` allows that adjective, `four_on_the_floor` means that
    drums, if there are any, play every quarter note, `electronic` that the genre consists of electronic sounds.
    """

    mass: tuple[str, ...]
    count: tuple[str, ...]
    scenes: tuple[str, ...] = ()
    eras: tuple[str, ...] = ()
    danceable: bool = False
    four_on_the_floor: bool = False
    electronic: bool = False


@dataclass(frozen=True)
class DanceWords(GenreWords):
    """Words for a danceable genre."""

    danceable: bool = field(default=True)


@dataclass(frozen=True)
class ClubWords(DanceWords):
    """Words for an electronic genre with a four-on-the-floor beat."""

    four_on_the_floor: bool = field(default=True)
    electronic: bool = field(default=True)


@dataclass(frozen=True)
class ElectronicWords(GenreWords):
    """Words for an electronic genre."""

    electronic: bool = field(default=True)


@dataclass(frozen=True)
class MoodWords:
    """Words for one mood.

    `adjectives` precede a noun, `nouns` follow "full of" or "with a sense of", `scenes` follow "music for". `valence`
    is 1 for bright, -1 for dark, 0 for neither.
    """

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    scenes: tuple[str, ...]
    valence: int
