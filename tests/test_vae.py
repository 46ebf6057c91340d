"""The autoencoder: shapes, finite reach, normalisation, and a stage that learns."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.jitted import vae

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.evaluation import reconstruction
from melody_jax.models import discriminators
from melody_jax.models.functional import count
from melody_jax.training.audio_losses import balanced
from melody_jax.training.stages.vae import VAEStage

TINY_STAGE = VAEStage(
    model=vae.TINY,
    discriminator=discriminators.TINY,
    resolutions=((1024, 240), (256, 60)),
    adversarial_start=1_000,
    adversarial_crop=4_800,
)


@pytest.fixture(scope="module")
def params():
    return vae.init(vae.TINY, jax.random.key(0))


def tones(batch: int, samples: int, seed: int) -> np.ndarray:
    """Plucked chords, float32 (batch, samples)."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 24_000
    notes = 110 * 2 ** (rng.integers(0, 36, (batch, 3, 1)) / 12)
    phase = 2 * np.pi * notes * time + rng.uniform(0, 6, (batch, 3, 1))
    return (0.2 * (np.sin(phase) + 0.5 * np.sin(2 * phase)).sum(1) * np.exp(-4 * time)).astype(np.float32)


def test_shapes_and_repeatability(params) -> None:
    audio = jnp.asarray(tones(2, 960 * 6, 0))
    latents = vae.encode(params, vae.TINY, audio)
    assert latents.shape == (2, 6, 8)
    assert vae.decode(params, vae.TINY, latents).shape == audio.shape
    np.testing.assert_array_equal(latents, vae.posterior(params, vae.TINY, audio)[0])
    draws = [vae.encode(params, vae.TINY, audio, jax.random.key(k)) for k in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert bool(jnp.any(draws[0] != draws[2]))


def test_items_do_not_see_each_other(params) -> None:
    audio = jnp.asarray(tones(3, 960 * 4, 1))
    together = vae.decode(params, vae.TINY, vae.encode(params, vae.TINY, audio))
    alone = vae.decode(params, vae.TINY, vae.encode(params, vae.TINY, audio[1:2]))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


PHASED = replace(vae.TINY, codec=replace(vae.TINY.codec, phase=True))
"""Its decoder outputs phases."""


@pytest.mark.parametrize("config", [vae.TINY, PHASED, vae.TINY_TWO_WINDOWS])
def test_decoder_reach_by_gradient(config) -> None:
    """One latent's stretch depends on `decoder_reach` latents either side, phase and all, and on the last of them."""
    params = vae.init(config, jax.random.key(0))
    reach = vae.decoder_reach(config)
    middle = max(10, reach + 2)
    latents = jax.random.normal(jax.random.key(3), (1, 2 * middle + 1, 8))
    stretch = slice(middle * 960, (middle + 1) * 960)
    slope = jax.jit(jax.grad(lambda z: jnp.sum(vae.decode(params, config, z)[:, stretch] ** 2)))(latents)
    seen = np.flatnonzero(np.abs(slope).sum((0, 2)) > 0)
    assert (seen.min(), seen.max()) == (middle - reach, middle + reach)


@pytest.mark.parametrize("config", [vae.TINY, vae.TINY_TWO_WINDOWS])
def test_encoder_reach_by_gradient(config) -> None:
    params = vae.init(config, jax.random.key(0))
    reach, middle = vae.encoder_reach(config), 10
    audio = 0.1 * jax.random.normal(jax.random.key(4), (1, 21 * 960))
    slope = jax.grad(lambda x: jnp.sum(vae.encode(params, config, x)[:, middle] ** 2))(audio)
    seen = np.flatnonzero(np.abs(slope[0]) > 0)
    assert middle * 960 - reach <= seen.min() < middle * 960 - reach + 480
    assert (middle + 1) * 960 + reach >= seen.max() > (middle + 1) * 960 + reach - 480


def test_a_stretch_with_context_decodes_as_in_the_full_sequence(params) -> None:
    """Streaming relies on it."""
    reach = vae.decoder_reach(vae.TINY)
    latents = jax.random.normal(jax.random.key(5), (1, 24, 8))
    decode = jax.jit(partial(vae.decode, params, vae.TINY))
    full = decode(latents)[:, 8 * 960 : 12 * 960]
    inner = slice(reach * 960, (reach + 4) * 960)
    part, elsewhere = (decode(latents[:, 8 - reach : 12 + reach], first) for first in (8 - reach, 0))
    np.testing.assert_allclose(part[:, inner], full, atol=1e-6)
    assert not np.allclose(elsewhere[:, inner], full, atol=1e-3)  # the phase search began with other phases


def test_a_decoder_with_phases_learns_a_waveform() -> None:
    """Fitted to the samples of one tone, which magnitudes alone do not determine."""
    audio = jnp.asarray(0.3 * np.sin(2 * np.pi * 500 / 24_000 * np.arange(5 * 960)), jnp.float32)[None]
    params = vae.init(PHASED, jax.random.key(0))
    latents, optimizer = vae.encode(params, PHASED, audio), optax.adam(1e-2)

    def miss(decoder):
        decoded, _ = vae.reconstruct(params | {"decoder": decoder}, PHASED, latents, audio)
        return jnp.mean((decoded - audio)[:, 960:-960] ** 2) / jnp.mean(audio**2)

    @jax.jit
    def update(decoder, state):
        updates, state = optimizer.update(jax.grad(miss)(decoder), state)
        return optax.apply_updates(decoder, updates), state

    decoder, state = params["decoder"], optimizer.init(params["decoder"])
    for _ in range(100):
        decoder, state = update(decoder, state)
    assert miss(decoder) < 0.3 < 0.9 < miss(params["decoder"])


def test_paper_kind_scales_and_clips_once() -> None:
    config = replace(vae.TINY, latent_scale=3.0, latent_clip=1.0)
    params = vae.init(config, jax.random.key(0))
    audio = jnp.asarray(tones(1, 9600, 2))
    latents = vae.encode(params, config, audio)
    np.testing.assert_allclose(
        latents, jnp.clip(vae.posterior(params, config, audio)[0] / 3, -1, 1), atol=1e-6
    )
    np.testing.assert_array_equal(
        vae.decode(params, config, jnp.full((1, 4, 8), 2.0)), vae.decode(params, config, jnp.ones((1, 4, 8)))
    )


def test_mini_sizes() -> None:
    shapes = jax.eval_shape(partial(vae.init, vae.VAEConfig()), jax.random.key(0))
    assert 2e6 < count(shapes["encoder"]) < 3.5e6
    assert 3e6 < count(shapes["decoder"]) < 5e6


def test_bad_input_is_refused(params) -> None:
    with pytest.raises(UserError, match="multiple of 960"):
        vae.encode(params, vae.TINY, jnp.zeros((1, 1000)))
    with pytest.raises(UserError, match="overlap"):
        replace(vae.TINY.codec, n_fft=256)
    with pytest.raises(UserError, match=r"window_share is 2\.0; it must be"):
        replace(TINY_STAGE, window_share=2.0)
    with pytest.raises(UserError, match=r"loss_corner_hz is -1\.0; it must be at least 0"):
        replace(TINY_STAGE, loss_corner_hz=-1.0)
    with pytest.raises(UserError, match="quantile 1: it must be above 0 and below 1"):
        replace(TINY_STAGE, quantile=1.0)
    with pytest.raises(UserError, match="magnitude_weight 1: the decoder writes samples"):
        replace(TINY_STAGE, model=vae.PAPER, magnitude_weight=1.0)


def test_stage_learns_whitens_and_leaves_frozen_parts_alone() -> None:
    """50 steps without GAN lower the held-out MR-STFT; the discriminators and the latent statistics do not move."""
    stage = TINY_STAGE
    params = stage.init(jax.random.key(0))
    optimizer = optax.adamw(3e-3)
    held_out = {"audio": jnp.asarray(tones(4, 9600, 99))}
    evaluate = jax.jit(stage.evaluate)

    @jax.jit
    def step(params, state, audio, n):
        grads, metrics = stage.gradients(
            params, {"audio": audio}, jax.random.fold_in(jax.random.key(1), n), n
        )
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads, metrics

    before, state = evaluate(params, held_out, jax.random.key(2)), optimizer.init(params)
    for n in range(50):
        params, state, grads, metrics = step(params, state, tones(4, 9600, n), jnp.int32(n))
    after = evaluate(params, held_out, jax.random.key(2))
    assert after["loss"] < 0.75 * before["loss"]
    assert after["log_mel_l1"] < before["log_mel_l1"]
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads["discriminator"]))
    assert not np.any(grads["model"]["latent_scale"])

    model, _ = stage.finish(
        params["model"], iter([{"audio": tones(8, 9600, n)} for n in range(2)]), jax.random.key(3)
    )
    whitened = vae.encode(
        model, stage.model, jnp.asarray(np.concatenate([tones(8, 9600, n) for n in range(2)]))
    )
    np.testing.assert_allclose(jnp.mean(whitened, (0, 1)), 0, atol=1e-2)
    np.testing.assert_allclose(jnp.std(whitened, (0, 1)), 1, atol=1e-2)
    audio = vae.decode(model, stage.model, vae.encode(model, stage.model, held_out["audio"]))
    np.testing.assert_allclose(
        audio,
        vae.decode(params["model"], stage.model, vae.encode(params["model"], stage.model, held_out["audio"])),
        atol=1e-4,
    )


def test_adversarial_gradients_are_those_of_the_losses() -> None:
    """The shared forward pass against plain `jax.grad` of each side's loss."""
    stage = replace(
        TINY_STAGE, adversarial_start=0, adversarial_ramp=0, adversarial_crop=9_600, magnitude_weight=0.3
    )
    params = stage.init(jax.random.key(0))
    batch, key = {"audio": jnp.asarray(tones(2, 9600, 5))}, jax.random.key(7)
    grads, metrics = jax.jit(stage.gradients)(params, batch, key, jnp.int32(1))
    noise_key = jax.random.split(key)[0]

    def losses(model, discriminator):
        (audio, terms), _ = stage._autoencode(model, batch["audio"], noise_key)
        fake = discriminators.discriminate(discriminator, stage.discriminator, audio)
        real = discriminators.discriminate(discriminator, stage.discriminator, batch["audio"])
        decoder = stage._spectral_loss(audio, batch["audio"])[0] + stage.kl_weight * terms["kl"]
        decoder += stage.magnitude_weight * terms["magnitude"]
        decoder += stage.adversarial_weight * sum(jnp.mean((logits - 1) ** 2) for logits, _ in fake)
        for (_, f), (_, r) in zip(fake, real, strict=True):
            decoder += stage.feature_weight * jnp.mean(
                jnp.stack([jnp.mean(jnp.abs(a - b)) for a, b in zip(f, r, strict=True)])
            )
        adversary_loss = sum(
            jnp.mean((r - 1) ** 2) + jnp.mean(f**2) for (r, _), (f, _) in zip(real, fake, strict=True)
        )
        return decoder, adversary_loss

    model = jax.jit(jax.grad(lambda m: losses(m, params["discriminator"])[0]))(params["model"])
    discriminator = jax.jit(jax.grad(lambda j: losses(params["model"], j)[1]))(params["discriminator"])
    expected = {"discriminator": discriminator, "model": model}
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-3), grads, expected)
    assert metrics["discriminator"] > 0


def test_plain_magnitudes_of_half_windows() -> None:
    """The paper's spectral loss: L1 between what `torch.stft` would give with a window of half of n_fft."""
    stage = replace(TINY_STAGE, resolutions=((512, 64),), window_share=0.5, plain_magnitudes=True)
    a, b = (jnp.asarray(tones(2, 4800, seed)) for seed in (6, 7))
    sizes = [jnp.abs(spectral.stft(x, 512, 64, 256)) for x in (a, b)]
    np.testing.assert_allclose(
        stage._spectral_loss(a, b)[1]["linear"], jnp.mean(jnp.abs(sizes[0] - sizes[1])), rtol=1e-3
    )


def test_bins_weigh_by_frequency() -> None:
    """The loss of a change in one bin alone, at a known frequency, against the weight's formula."""
    stage = replace(TINY_STAGE, loss_corner_hz=150.0)
    frequencies = np.arange(0, 12_001, 100.0)
    weights = 1 / (frequencies + 150)
    original = jnp.ones((1, 1, len(frequencies)))
    for index in (0, 5, 100):
        changed = original.at[..., index].add(1.0)
        linear, log = stage._distances(changed, original, frequencies)
        assert float(linear) == pytest.approx(weights[index] / weights.sum(), rel=1e-4)
        assert float(log) == pytest.approx(np.log(2) * weights[index] / weights.sum(), rel=2e-3)
        flat, _ = TINY_STAGE._distances(changed, original, frequencies)
        assert float(flat) == pytest.approx(1 / len(frequencies), rel=1e-4)


@pytest.mark.parametrize(("quantile", "level"), [(0.5, np.log(2) ** 0.5), (0.632, 1.0)])
def test_the_quantile_sets_the_level_of_noise(quantile: float, level: float) -> None:
    """The constant that fits the magnitudes of complex noise best is their median, or at 0.632 their RMS."""
    stage = replace(TINY_STAGE, quantile=quantile, log_floor=1e-6)
    noise = np.random.default_rng(0).normal(size=(2, 20_000)) / 2**0.5
    magnitudes = jnp.asarray(np.hypot(*noise), jnp.float32)[None, :, None]
    candidates = np.linspace(0.5, 1.5, 201)
    losses = [stage._distances(jnp.full_like(magnitudes, c), magnitudes, np.ones(1)) for c in candidates]
    for term in np.asarray(losses).T:
        assert candidates[term.argmin()] == pytest.approx(level, abs=0.02)


def test_magnitude_loss_reaches_what_the_decoder_writes() -> None:
    """It vanishes where the decoder writes the original's magnitudes, and pulls at every parameter of the decoder."""
    stage = replace(TINY_STAGE, model=vae.TINY_TWO_WINDOWS, magnitude_weight=2.0, loss_corner_hz=150.0)
    model = vae.init(stage.model, jax.random.key(0))
    audio = jnp.asarray(tones(2, 9600, 5))
    term = lambda model: stage._autoencode(model, audio, jax.random.key(7))[0][1]["magnitude"]  # noqa: E731
    pull = jax.jit(jax.grad(term))(model)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(pull["decoder"])) > 0
    _, pairs = vae.reconstruct(model, stage.model, jnp.zeros((2, 10, 8)), audio)
    assert [pair.decoded.shape[-1] for pair in pairs] == [
        513 - stage.model.codec.first_bin,
        stage.model.codec.low_bins,
    ]
    assert float(stage._magnitude_loss(pairs)) > 1
    assert float(stage._magnitude_loss([pair._replace(decoded=pair.original) for pair in pairs])) == 0


def test_balancing_keeps_the_direction_and_sets_the_size() -> None:
    gradient, reference = jnp.asarray([[3.0, 0.0], [0.0, 4.0]]), jnp.asarray([[0.0, 2.0]])
    np.testing.assert_allclose(balanced(gradient, reference, 0.5), gradient / 5, rtol=1e-6)
    assert not np.any(balanced(jnp.zeros((2, 2)), reference, 0.5))


def test_reconstruction_figures() -> None:
    reference = tones(2, 9600, 8)
    error = tones(2, 9600, 9)
    error -= reference * (error * reference).sum(-1, keepdims=True) / (reference**2).sum(-1, keepdims=True)
    error *= 0.1 * np.sqrt((reference**2).sum(-1, keepdims=True) / (error**2).sum(-1, keepdims=True))
    assert reconstruction.si_sdr(3 * (reference + error), reference) == pytest.approx(20, abs=1e-2)
    assert reconstruction.log_mel_l1(reference, reference) == 0
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 9600))
    assert reconstruction.log_mel_l1(2 * noise, noise) == pytest.approx(np.log(2), abs=1e-3)
    np.testing.assert_allclose(reconstruction.log_mel(noise), spectral.log_mel(jnp.asarray(noise)), atol=1e-2)
    with pytest.raises(UserError):
        reconstruction.si_sdr(reference, reference[:, 1:])
