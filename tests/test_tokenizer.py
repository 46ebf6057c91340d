import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from melody_jax.errors import UserError
from melody_jax.models import functional, tokenizer, wav2vec2
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.models.wav2vec2 import Wav2Vec2Config
from melody_jax.training.stages.tokenizer import TokenizerStage

CONFIG = dataclasses.replace(tokenizer.TINY, semantic_vocab=16)
STAGE = TokenizerStage(model=CONFIG, codebooks=2, codes=32, mask_span=4, mask_start=0.1, cluster_frames=600)
EAR = Wav2Vec2Config(channels=32, layers=2, layer=1, width=32, heads=2, ffn=64, kernel=5)
STAGES = {
    "spectra": STAGE,
    "waveform": dataclasses.replace(STAGE, model=dataclasses.replace(CONFIG, encoder=EAR)),
}
FEATURES = jax.jit(tokenizer.features, static_argnames=("config", "layer"))


def audio(seed: int, batch: int = 4, tokens: int = 32) -> np.ndarray:
    """Two-note arpeggios with harmonics, one note per 8 tokens."""
    rng = np.random.default_rng([seed, 5])
    time = np.arange(tokens * 960) / 24000
    notes = rng.integers(45, 80, (batch, 2))[:, np.arange(tokens * 960) // 7680 % 2]
    phase = 2 * np.pi * 440 * 2 ** ((notes - 69) / 12) * time
    tone = sum(np.sin(h * phase) / h ** rng.uniform(0.5, 2, (batch, 1)) for h in range(1, 6))
    return (0.1 * tone + 0.001 * rng.standard_normal(tone.shape)).astype(np.float32)


def test_mini_and_paper_size():
    shapes = jax.eval_shape(lambda key: tokenizer.init(TokenizerConfig(), key), jax.random.key(0))
    assert functional.count(shapes["blocks"]) + functional.count(shapes["input"]) <= 2.0e6
    shapes = jax.eval_shape(lambda key: wav2vec2.init(tokenizer.PAPER.encoder, key), jax.random.key(0))
    assert functional.count(shapes) == 195_141_376  # the paper has 199.5 M


def test_shapes_and_layers():
    params = tokenizer.init(CONFIG, jax.random.key(0))
    wave = audio(0)
    outputs = [FEATURES(params, CONFIG, wave, layer) for layer in (0, 1, 2)]
    assert all(x.shape == (4, 32, CONFIG.feature_width) for x in outputs)
    assert all(np.isfinite(x).all() for x in outputs)
    np.testing.assert_array_equal(FEATURES(params, CONFIG, wave), outputs[1])
    assert not np.allclose(outputs[1], outputs[2])
    bare = dataclasses.replace(CONFIG, spectral_share=0.0)
    assert FEATURES(params, bare, wave).shape == (4, 32, 32)


def test_finite_context():
    params = tokenizer.init(CONFIG, jax.random.key(0))
    wave = audio(0, batch=1, tokens=64)
    changed = wave.copy()
    changed[:, : 8 * 960] = 0.3
    difference = np.abs(FEATURES(params, CONFIG, wave) - FEATURES(params, CONFIG, changed)).max(-1)[0]
    reach = (
        CONFIG.encoder.attention_window + CONFIG.encoder.kernel // 2 + 3
    )  # 3: the longest Fourier window, tokens
    assert difference[8] > 1e-4
    assert difference[8 + reach :].max() < 1e-5


def test_semitone_bands_name_the_pitch():
    for midi in (45, 60, 81):
        wave = np.sin(2 * np.pi * 440 * 2 ** ((midi - 69) / 12) * np.arange(9600) / 24000)[None].astype(
            np.float32
        )
        _, bands = tokenizer.spectrum(CONFIG, wave)
        assert np.argmax(bands[0, 5]) + CONFIG.semitone_low == midi


@pytest.mark.parametrize("kind", STAGES)
def test_training_then_tokens(kind):
    stage = STAGES[kind]
    config = stage.model
    params = stage.init(jax.random.key(0))
    optimizer = optax.adam(2e-3)
    state = optimizer.init(params)
    evaluate = jax.jit(stage.evaluate)
    held_out = {"audio": audio(10_000, batch=16)}

    @jax.jit
    def update(params, state, batch, step):
        grads, metrics = stage.gradients(params, batch, jax.random.fold_in(jax.random.key(1), step), step)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    first = evaluate(params, held_out, jax.random.key(2))
    for step in range(50):
        params, state, metrics = update(params, state, {"audio": audio(step, batch=8)}, step)
    last = evaluate(params, held_out, jax.random.key(2))
    assert np.isfinite(metrics["loss"])
    masked = stage.mask(jax.random.split(jax.random.fold_in(jax.random.key(1), 49))[0], 8, 32)
    assert metrics["weight"] == masked.sum()
    assert (
        last["loss"] < {"spectra": 0.8, "waveform": 0.9}[kind] * first["loss"]
    )  # chance is 0.92 of the first
    np.testing.assert_array_equal(params["model"]["codebook"], 0)

    model, fitted = stage.finish(
        params["model"], ({"audio": audio(step)} for step in range(100, 200)), jax.random.key(3)
    )
    again, _ = stage.finish(
        params["model"], ({"audio": audio(step)} for step in range(100, 200)), jax.random.key(3)
    )
    np.testing.assert_array_equal(model["codebook"], again["codebook"])
    assert fitted["usage"] == 1
    assert 0.2 < fitted["perplexity"] <= 1
    assert 0 < fitted["left"] < 0.8
    tokenize = jax.jit(tokenizer.tokenize, static_argnames="config")
    tokens = np.asarray(tokenize(model, config, held_out["audio"]))
    assert tokens.shape == (16, 32)
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < 16
    assert len(np.unique(tokens)) >= 12
    np.testing.assert_array_equal(tokens[:2], tokenize(model, config, held_out["audio"][:2]))
    scaled = tokenizer.standardise(model, FEATURES(model, config, held_out["audio"])).reshape(
        -1, config.feature_width
    )
    variance = np.asarray(scaled).var(axis=0)
    assert 0.1 < variance[:32].sum() < 0.6
    assert 0.35 < variance[32:].sum() < 1.5


def test_masks():
    mask = np.asarray(STAGE.mask(jax.random.key(0), 2000, 50))
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert mask.any(axis=1).all()
    assert abs(mask[:, 10:].mean() - (1 - 0.9**4)) < 0.08


def test_targets_see_pitch_and_timbre():
    wave = audio(3, batch=8)
    mel, bands = tokenizer.spectrum(CONFIG, wave)
    codes = np.asarray(STAGE.targets(mel, bands))
    assert codes.shape == (8, 32, 2)
    assert min(len(np.unique(codes[..., i])) for i in range(2)) > 8
    louder = np.asarray(STAGE.targets(mel, bands + 0.5))
    np.testing.assert_array_equal(louder[..., 1], codes[..., 1])


def test_bad_input():
    for change, message in (({"heads": 3}, "heads"), ({"kernel": 4}, "odd"), ({"layer": 3}, "layer 3")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(CONFIG.encoder, **change)
    params = tokenizer.init(CONFIG, jax.random.key(0))
    with pytest.raises(UserError, match="a token needs 960"):
        tokenizer.features(params, CONFIG, jnp.zeros((1, 500)))
    with pytest.raises(UserError, match="no audio"):
        STAGE.finish(params, iter(()), jax.random.key(0))
