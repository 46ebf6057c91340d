"""The second release that ships, `bass`: complete, and one hears the bass."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jitted import vae

import melody_jax
from melody_jax import release
from melody_jax.evaluation.fidelity import bass_agreement, steady_bass
from melody_jax.release import WEIGHTS
from melody_jax.sampling.cascade import NETWORKS

BASS = WEIGHTS / "bass"


def test_it_is_complete_and_says_what_it_was_made_with() -> None:
    for name in (*NETWORKS, "tokenizer"):
        assert release.read_description(BASS, name)["metrics"]
    for name in ("README.md", "ATTRIBUTION.md"):
        assert (BASS / name).read_text()
    for name in ("mulan", "tokenizer"):
        weights = f"{name}.safetensors"
        assert (BASS / weights).read_bytes() == (WEIGHTS / "mini" / weights).read_bytes()


def bass_line() -> np.ndarray:
    """Eight notes of a bass with five harmonics, half a second each, under a chord: float32 (96,000,)."""
    time = np.arange(96_000) / 24_000
    notes = 55 * 2 ** (np.array([0, 3, 5, 7, 0, -2, 5, 3]) / 12)
    phase = 2 * np.pi * np.cumsum(np.repeat(notes, 12_000)) / 24_000
    envelope = np.exp(-3 * (time % 0.5))
    bass = sum(np.sin(h * phase) / h for h in range(1, 6)) * envelope
    chord = sum(np.sin(2 * np.pi * f * time) for f in (220.0, 261.6, 329.6))
    return (0.15 * bass + 0.05 * chord).astype(np.float32)


def test_its_autoencoder_keeps_the_bass() -> None:
    """The one of `mini` does not, so the measure can tell."""
    original = bass_line()
    audio = jnp.asarray(original[None])
    agreement = {}
    for name in ("bass", "mini"):
        networks = melody_jax.load(name, networks=("vae",))
        params, config = networks.params["vae"], networks.configs["vae"]
        decoded = vae.decode(params, config, vae.encode(params, config, audio))
        agreement[name] = bass_agreement(np.asarray(decoded[0]), original)
    assert agreement["bass"] > 0.6
    assert agreement["mini"] < 0.4


@pytest.mark.parametrize("controls", [{}, {"bpm": 128.0, "key": "A minor"}])
def test_prompts_make_bass(controls: dict) -> None:
    melody = melody_jax.load("bass")
    (wave,) = melody.generate("driving techno with a deep bass", seconds=10, steps=2, seed=3, **controls)
    assert np.isfinite(wave).all()
    assert steady_bass(wave) > 0.2
