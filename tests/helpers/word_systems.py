"""What every system that makes clips of one window from words must do."""

from typing import Any
from unittest import mock

import numpy as np

from helpers.tiny import PROMPTS
from melody_jax.sampling.prompts import EncodedRequest, PromptEncoder

SETTINGS = {"seed": 3, "steps": 2}


def assert_clips_do_not_depend_on_their_batch(system: Any) -> None:
    """Of a system at 24 kHz mono whose window is 0.64 s."""
    assert system.window_seconds == 0.64
    together = system.generate(PROMPTS, seconds=0.5, **SETTINGS)
    assert {clip.shape for clip in together} == {(12_000,)}
    assert all(clip.dtype == np.float32 and np.abs(clip).max() <= 1 for clip in together)
    assert len({clip.tobytes() for clip in together}) == len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = system.generate(prompt, seconds=0.5, **SETTINGS | {"seed": 3 + i})
        np.testing.assert_allclose(alone, together[i], atol=1e-4)


def assert_words_guidance_and_candidates_matter(system: Any) -> None:
    """Words and guidance change a clip; with equal ones it is the same; `best_of` returns the closest candidate."""
    plain, again, words, unguided = system.generate(
        ["piano", "piano", "techno", "piano"],
        seconds=0.5,
        steps=2,
        seed=[5] * 4,
        guidance_scale=[2.5, 2.5, 2.5, 1.0],
    )
    np.testing.assert_array_equal(plain, again)
    for other in (words, unguided):
        assert np.abs(plain - other).max() > 1e-4
    assert_best_of_returns_the_closest_candidate(system, plain, seconds=0.5, steps=2, seed=5)


def assert_best_of_returns_the_closest_candidate(system: Any, first: np.ndarray, **settings: Any) -> None:
    """Of two candidates, of which `first` is the clip without `best_of`, for the prompt "piano"."""
    closest, candidates, scores = _best_of_two(system, 1.0, settings)
    np.testing.assert_allclose(candidates[0], first, atol=1e-4)
    assert np.abs(candidates[0] - candidates[1]).max() > 1e-4
    np.testing.assert_array_equal(closest, candidates[np.argmax(scores)])
    farthest, candidates, _ = _best_of_two(system, -1.0, settings)
    np.testing.assert_array_equal(farthest, candidates[np.argmin(scores)])


def _best_of_two(
    system: Any, sign: float, settings: dict[str, Any]
) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """The clip of `best_of` two if similarities have this factor, its candidates and their similarities."""
    similarity = PromptEncoder.similarity
    candidates = []
    scores = []

    def score(encoder: PromptEncoder, prompt: EncodedRequest, wave: np.ndarray) -> float:
        candidates.append(wave)
        scores.append(similarity(encoder, prompt, wave))
        return sign * scores[-1]

    with mock.patch.object(PromptEncoder, "similarity", score):
        (best,) = system.generate("piano", best_of=2, **settings)
    assert len(set(scores)) == 2
    return best, candidates, scores
