"""Upper bounds on tempo accuracy for the committed prompts, given everything that a prompt says about its tempo.

    python benchmarks/tempo_bound.py

A prompt with a number gives its tempo exactly. For any other prompt, the plausible tempi are those of composed pieces
of the same group that fit its words ("slow", "at a brisk tempo"). The best single guess is the tempo that matches most
of these pieces. A random draw is right as often as two of the pieces have the same tempo. Prints both bounds, for
prompts with a beat.
"""

import re
from dataclasses import dataclass
from itertools import islice

import numpy as np
import tyro

from melody_jax.composer import prompt_facts
from melody_jax.composer.phrases.frames import TEMPO
from melody_jax.evaluation import composed_prompts
from melody_jax.evaluation.clip_features import is_same_tempo
from melody_jax.evaluation.composed_prompts import ComposedPrompt

GUESSES = np.arange(40.0, 200.0, 0.5)
FIRST_SEED = 70_000_000
"""Seeds from here on are not those of the committed prompts."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """How many pieces stand for a group."""

    pieces: int = 300
    """Composed pieces of each group; nothing is rendered."""


def allowed(text: str) -> tuple[float, float]:
    """The tempi that a prompt's words allow, from and to, bpm."""
    words = f" {re.sub(r'[^a-z]+', ' ', text.lower())} "
    least = 0.0
    bands = []
    for limit, adjectives, adverbials in TEMPO:
        spoken = [re.sub(r"[^a-z]+", " ", phrase) for phrase in (*adjectives, *adverbials)]
        bands += [(len(phrase), least, limit) for phrase in spoken if f" {phrase} " in words]
        least = limit
    return max(bands)[1:] if bands else (0.0, np.inf)


def chances(prompt: ComposedPrompt, tempi: np.ndarray) -> tuple[float, float]:
    """The share of pieces for which the best guess, and a draw, is right."""
    low, high = allowed(prompt.text)
    possible = tempi[(tempi >= low) & (tempi < high)]
    possible = possible if len(possible) > 1 else tempi
    right = [[is_same_tempo(guess, tempo) for tempo in possible] for guess in GUESSES]
    draws = np.array([[is_same_tempo(one, other) for one in possible] for other in possible])
    np.fill_diagonal(draws, False)
    return float(np.mean(right, axis=1).max()), float(draws.sum() / (len(draws) * (len(draws) - 1)))


def main(arguments: Arguments) -> None:
    """Prints the bounds."""
    prompts = [
        prompt for prompt in composed_prompts.read_prompts(composed_prompts.PROMPTS) if prompt.rhythmic
    ]
    open_prompts = [prompt for prompt in prompts if prompt_facts.of_text(prompt.text).tempo_bpm is None]
    results = []
    for group in composed_prompts.GROUPS:
        pieces = islice(composed_prompts.pieces(group, "test", FIRST_SEED, 10.24), arguments.pieces)
        tempi = np.array([piece.facts.tempo_bpm for piece in pieces if piece.facts.rhythmic])
        results += [chances(prompt, tempi) for prompt in open_prompts if prompt.group == group.name]
    guess, draw = np.mean(results, axis=0)
    numbers = len(prompts) - len(open_prompts)
    print(f"{len(prompts)} prompts with a beat, {numbers} of them with a number")
    print(f"without a number: best guess right {guess:.2f}, a draw {draw:.2f}")
    for name, share in (("best guesses", guess), ("draws", draw)):
        print(f"all prompts, {name}: at most {(numbers + share * len(open_prompts)) / len(prompts):.2f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
