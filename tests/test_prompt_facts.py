"""Facts of prompts: hand-made ones, and the composer's captions, for which the facts are known."""

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
