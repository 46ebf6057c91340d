"""What every system that makes clips of one window from words must do."""

from typing import Any

import numpy as np

from helpers.tiny import PROMPTS

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
    """Words and guidance change a clip; with equal ones it is the same, and a best of two is as long."""
    plain, again, words, unguided, best = system.generate(
        ["piano", "piano", "techno", "piano", "piano"],
        seconds=0.5,
        steps=2,
        seed=[5] * 5,
        guidance_scale=[2.5, 2.5, 2.5, 1.0, 2.5],
        best_of=[1, 1, 1, 1, 2],
    )
    np.testing.assert_array_equal(plain, again)
    for other in (words, unguided):
        assert np.abs(plain - other).max() > 1e-4
    assert best.shape == plain.shape
