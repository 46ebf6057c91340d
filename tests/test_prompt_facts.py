"""What prompts ask for, by hand and over the composer's captions, whose facts are known."""

from melody_jax.composer.captions import captions
from melody_jax.composer.compose import compose
from melody_jax.evaluation.prompt_facts import of_facts, of_text


def test_by_hand() -> None:
    asked = of_text(
        "A slow bossa nova with nylon-string guitar and flute, in D flat dorian at 96 bpm, in three-four time"
    )
    assert asked.genre == "bossa nova"
    assert asked.instruments == (frozenset({"acoustic guitar"}), frozenset({"flute"}))
    assert (asked.tempo_bpm, asked.key, asked.mode, asked.metre) == (96.0, "C#", "minor", "3/4")
    assert of_text("something in a minor key").mode == "minor"
    assert of_text("something in a minor key").key is None
    assert of_text("F sharp major").key == "F#"
    assert len(of_text("guitar").instruments[0]) > 1  # a name of several instruments


def test_what_is_denied_is_not_asked_for() -> None:
    assert of_text("techno, no piano, without any drums").instruments == ()
    assert of_text("no strings").instruments == ()


def test_captions_ask_for_what_is_there() -> None:
    said = wrong = 0
    for seed in range(8):
        piece = compose(seed, 10.0, split="test")
        truth = of_facts(vars(piece.facts))
        for caption in captions(piece.facts, seed, 6):
            asked = of_text(caption)
            for name in ("genre", "key", "mode", "metre"):
                if getattr(asked, name) is not None and getattr(truth, name) is not None:
                    said += 1
                    wrong += getattr(asked, name) != getattr(truth, name)
            for one in asked.instruments:
                said += 1
                wrong += not one & set(piece.facts.instruments)
            if asked.tempo_bpm is not None:
                said += 1
                wrong += abs(asked.tempo_bpm - piece.facts.tempo_bpm) > 3
    assert said > 60
    assert wrong <= 0.05 * said
