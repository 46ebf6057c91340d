import re

import numpy as np
import pytest

from melody_jax.composer.captions import captions
from melody_jax.composer.genres import GENRES as COMPOSED
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.moods import MOODS
from melody_jax.composer.phrases import frames, genre_words, instrument_words, mood_words
from melody_jax.composer.piece import Facts

GENRES = list(genre_words.GENRES)
BANDS = {
    "solo piano": [("piano",)],
    "techno": [("synth bass", "drums", "synth lead")],
    "metal": [("distorted guitar", "picked bass", "drums")],
    "ambient": [("warm pad", "glass pad")],
    "classical": [("violin", "viola", "cello"), ("flute", "strings", "harpsichord")],
    "orchestral": [("strings", "french horn", "timpani", "choir")],
}
OTHER_BANDS = [
    ("saxophone", "piano", "upright bass", "drums"),
    ("fiddle", "acoustic guitar"),
    ("chip lead", "chip arp"),
]


def random_facts(index):
    rng = np.random.default_rng(index)

    def among(options):
        return options[rng.integers(len(options))]

    genre = among(GENRES)
    band = among(BANDS.get(genre, OTHER_BANDS))
    return Facts(
        genre=genre,
        mood=among(list(MOODS)),
        tempo_bpm=float(rng.uniform(50, 180)),
        key=among(["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]),
        mode=among(["major", "minor", "dorian", "mixolydian", "phrygian", "lydian"]),
        metre=among(["4/4", "3/4", "6/8"]),
        instruments=band,
        lead=band[0],
        sections=("verse",),
        rhythmic=genre != "ambient",
        energy=among(["low", "medium", "high"]),
    )


@pytest.fixture(scope="module")
def pieces():
    return [(facts, captions(facts, index)) for index, facts in ((i, random_facts(i)) for i in range(2000))]


def test_many_and_distinct(pieces):
    texts = [text.lower() for _, captions_ in pieces for text in captions_]
    assert all(len(set(captions_)) == 8 for _, captions_ in pieces)
    assert len(set(texts)) > 0.95 * len(texts)
    lengths = np.array([len(text.split()) for text in texts])
    assert np.mean(lengths <= 4) > 0.1
    assert np.mean(lengths >= 14) > 0.1


def test_seed_decides():
    facts = random_facts(3)
    assert captions(facts, 5) == captions(facts, 5) != captions(facts, 6)


def test_half_tell_the_tempo_and_tell_it_right(pieces):
    with_numbers, total = 0, 0
    for facts, texts in pieces:
        for text in texts:
            numbers = [int(number) for number in re.findall(r"(\d+) ?(?:bpm|beats per minute)", text.lower())]
            assert not numbers or facts.rhythmic
            for number in numbers:
                about = re.search(rf"(about|around|roughly) {number}", text.lower())
                assert abs(number - facts.tempo_bpm) <= (2.5 if about else 0.5)
            with_numbers += bool(numbers)
            total += facts.rhythmic
    assert 0.4 < with_numbers / total < 0.6


def test_tempo_words_agree(pieces):
    for low, high, words in ((0, 94, "slow|leisurely"), (113, 999, "brisk|fast|rapid|up-tempo|high-speed")):
        for facts, texts in pieces:
            if not low <= facts.tempo_bpm < high:
                assert not any(re.search(rf"(?<!-)\b({words})\b", t.lower()) for t in texts)


def test_absences_are_true(pieces):
    for facts, texts in pieces:
        for text in texts:
            for what, phrases in instrument_words.ABSENT.items():
                if any(re.search(rf"\b{phrase}\b", text.lower()) for phrase in phrases):
                    assert not any(
                        word in name
                        for name in facts.instruments
                        for word in instrument_words.ABSENT_WORDS[what]
                    )
            if any(phrase in text.lower() for phrase in instrument_words.NO_DRUMS):
                assert not {"drums", "timpani"} & set(facts.instruments)
            if any(
                re.search(rf"\b{phrase}\b", text.lower())
                for phrase in (*instrument_words.NO_VOICES, "beatless")
            ):
                assert "choir" not in facts.instruments


def test_keys_are_true(pieces):
    names = {facts.key for facts, _ in pieces}
    pattern = re.compile(r"\b([a-g])( sharp|#| flat)? (major|minor|dorian|mixolydian|phrygian|lydian)\b")
    named_keys = 0
    for facts, texts in pieces:
        allowed = {
            facts.key.lower(),
            facts.key.lower().replace("#", " sharp"),
            frames.FLATS.get(facts.key, "").lower(),
        }
        for text in texts:
            low = re.sub(r"\ba (major|minor)( |-)?key", "", text.lower())
            for letter, sign, mode in pattern.findall(low):
                named_keys += 1
                assert letter + sign in allowed, (facts, text)
                assert mode == facts.mode
            if "minor key" in text.lower() or "minor-key" in text.lower():
                assert facts.mode in frames.MINOR_MODES
    assert named_keys > 200
    assert len(names) == 12


def test_only_instruments_that_play_are_named(pieces):
    absent = {"guitar solo"}
    for facts, texts in pieces:
        if facts.genre != "solo piano":
            continue
        for text in texts:
            words = text.lower()
            for name in ("violin", "saxophone", "synth lead", "distorted guitar", "flute", *absent):
                assert name not in words


def test_most_tell_genre_or_lead(pieces):
    hits = [
        any(name.lower() in text.lower() for name in (*names, *instrument_words.NAMES[facts.lead]))
        for facts, texts in pieces
        for names in [
            (facts.genre, *genre_words.GENRES[facts.genre].mass, *genre_words.GENRES[facts.genre].count)
        ]
        for text in texts
    ]
    assert 0.85 < np.mean(hits) < 0.98


def test_articles():
    texts = [text.lower() for index in range(300) for text in captions(random_facts(index), index)]
    for text in texts:
        assert not re.search(r"\ba (?:[aio]|e[^u]|8-bit|18th|80s)", text), text
        assert not re.search(r"\ban (?:[bcdfgjklmnpqrstvwxyz]|eu)", text), text
        assert "{" not in text
        assert "@" not in text
        assert "\0" not in text
        assert "  " not in text


def test_unknown_words_fall_back_to_plain_names():
    facts = Facts(
        "zydeco", "zany", 120.0, "D", "hungarian", "9/4", ("theremin",), "theremin", (), True, "extreme"
    )
    text = " ".join(captions(facts, 1, count=12))
    assert "zydeco" in text
    assert "zany" in text
    assert "theremin" in text


def test_tables_cover_the_composer():
    assert set(COMPOSED) == set(genre_words.GENRES)
    assert set(MOODS) == set(mood_words.MOODS)
    assert set(INSTRUMENTS) <= set(instrument_words.NAMES)
