"""What holds for every system that ground truth enters stage by stage."""

import numpy as np

from helpers.tiny import PROMPTS
from melody_jax.evaluation import stage_swap
from melody_jax.sampling.settings import SamplingSettings
from melody_jax.sampling.system import System

SETTINGS = SamplingSettings(steps=5, seed=3)


def assert_ground_truth_enters_each_stage(system: System, stages: list[str]) -> None:
    """The clips of all stages but "lm" and "text" depend on the truth, and "text" is what `generate` makes."""
    samples = round(system.window_seconds * system.sample_rate)
    noise = np.random.default_rng(0).normal(size=(2, 2, samples)).astype(np.float32)
    time = np.arange(samples) / system.sample_rate
    truth = 0.2 * np.sin(2 * np.pi * 440 * time) + 0.01 * noise[0]
    prompts = PROMPTS[:2]
    swapped = stage_swap.swap_stages(system, truth, prompts, SETTINGS)
    others = stage_swap.swap_stages(system, 0.1 * noise[1], prompts, SETTINGS)
    assert list(swapped) == stages
    for stage, clips in swapped.items():
        assert clips.shape == truth.shape
        assert np.isfinite(clips).all()
        depends = np.abs(clips - others[stage]).max() > 1e-4
        assert depends == (stage != "text") or stage == "lm"
    expected = system.generate(prompts, seconds=system.window_seconds, seed=3)
    np.testing.assert_array_equal(swapped["text"], expected)
    assert len({clips.tobytes() for clips in swapped.values()}) == len(stages)
