"""Adherence: does a clip have the facts that its prompt asks for?

Two judges answer, both trained on composed music only (see `clip_features`):

  group_judge   one of 16 groups (10 genres, 6 lead instruments) and the tempo, for the committed composed prompts
  fact_judges   genre, instruments, tempo, key, mode and metre, for any prompt

A judge scores clips from their features. A fact that the prompt does not mention has no score.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from melody_jax.composer.prompt_facts import PromptFacts
from melody_jax.evaluation.clip_features import ClipFeatures
from melody_jax.evaluation.intervals import mean_interval


class Judge(Protocol):
    """Scores clips against the facts of their prompts."""

    @property
    def accuracy(self) -> dict[str, float]:
        """Fact -> the judge's mean score on composed pieces that it was not trained on; empty if not
        measured."""
        ...

    @property
    def chance(self) -> dict[str, float]:
        """Fact -> the score of the one constant answer that is best; empty if not measured."""
        ...

    def scores(self, features: ClipFeatures, facts: Sequence[PromptFacts]) -> dict[str, np.ndarray]:
        """Fact -> score (N,) of each clip, 0 to 1; nan where the prompt does not mention the fact."""
        ...


def adherence(
    scorer: Judge, features: ClipFeatures, facts: Sequence[PromptFacts], seed: int, draws: int = 1000
) -> dict[str, dict[str, Any]]:
    """Mean scores of clips with their intervals from `draws` resamples, for every fact that a prompt mentions.

    Returns:
        Fact -> {"right": `Interval` of the score, "clips": number of clips, "composed": the judge's accuracy
        on composed music, "chance": the score of a constant answer}.
    """
    summary = {}
    for name, scores in scorer.scores(features, facts).items():
        valid = scores[~np.isnan(scores)]
        if len(valid):
            summary[name] = {
                "right": mean_interval(valid, draws, seed),
                "clips": len(valid),
                "composed": scorer.accuracy.get(name),
                "chance": scorer.chance.get(name),
            }
    return summary
