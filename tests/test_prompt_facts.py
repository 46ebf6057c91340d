"""Facts of prompts: hand-made ones, and the composer's captions, for which the facts are known."""

import pytest

from melody_jax.composer.captions import captions
from melody_jax.composer.compose import compose
from melody_jax.composer.prompt_facts import of_facts, of_text


def test_by_hand() -> None:
    facts = of_text(
        "A slow bossa nova with nylon-string guitar and flute, in D flat dorian at 96 bpm, in three-four time"
    )
    assert facts.genre == "bossa nova"
    assert facts.instruments == (frozenset({"acoustic guitar"}), frozenset({"flute"}))
    assert (facts.tempo_bpm, facts.key, facts.mode, facts.metre) == (96.0, "C#", "dorian", "3/4")
    assert facts.mode_family == "minor"
    assert of_text("something in a minor key").mode == "minor"
    assert of_text("something in a minor key").key is None
    assert of_text("F sharp major").key == "F#"
    assert len(of_text("guitar").instruments[0]) > 1  # a name of several instruments


@pytest.mark.parametrize(
    ("text", "tempo", "key", "mode", "metre"),
    [
        ("techno at 128.5 bpm in Bb major", 128.5, "A#", "major", None),
        ("1200 bpm", None, None, None, None),
        ("techno, tempo 174", 174.0, None, None, None),
        ("BPM: 174, techno", 174.0, None, None, None),
        ("a tempo of 90.5", 90.5, None, None, None),
        ("120 beats a minute", 120.0, None, None, None),
        ("120-BPMs", 120.0, None, None, None),
        ("tempo 1200", None, None, None, None),
        ("120 cellos at a slow tempo", None, None, None, None),
        ("a waltz in B-flat Minor, 3/4", None, "A#", "minor", "3/4"),
        ("march, 4/4, F-sharp minor", None, "F#", "minor", "4/4"),
        ("A major hit song", None, None, None, None),
        ("A minor, slow", None, "A", "minor", None),
        ("piece in A major with flute", None, "A", "major", None),
        ("not in A minor, 90 bpm", 90.0, None, None, None),
        ("E♭ major, 7/8", None, "D#", "major", "7/8"),
        ("13/8 or 1/4", None, None, None, None),
    ],
)
def test_ways_of_writing(
    text: str, tempo: float | None, key: str | None, mode: str | None, metre: str | None
) -> None:
    facts = of_text(text)
    assert (facts.tempo_bpm, facts.key, facts.mode, facts.metre) == (tempo, key, mode, metre)


def test_negated_words_are_ignored() -> None:
    assert of_text("techno, no piano, without any drums").instruments == ()
    assert of_text("no strings").instruments == ()


def test_captions_agree_with_the_piece() -> None:
    mentioned = 0
    wrong = 0
    for seed in range(8):
        piece = compose(seed, 10.0, split="test")
        truth = of_facts(vars(piece.facts))
        for caption in captions(piece.facts, seed, 6):
            facts = of_text(caption)
            for name in ("genre", "key", "mode_family", "metre"):
                if getattr(facts, name) is not None and getattr(truth, name) is not None:
                    mentioned += 1
                    wrong += getattr(facts, name) != getattr(truth, name)
            for names in facts.instruments:
                mentioned += 1
                wrong += not names & set(piece.facts.instruments)
            if facts.tempo_bpm is not None:
                mentioned += 1
                wrong += abs(facts.tempo_bpm - piece.facts.tempo_bpm) > 3
    assert mentioned > 60
    assert wrong <= 0.05 * mentioned
