"""The autoencoder's losses (MeLoDy, arXiv 2305.15719, section 4.2, made affordable): spectral reconstruction, KL, and a
GAN from some step on. With a quantiser, codebooks that follow the latents (training/tracked_codebooks.py) and a
commitment loss take the place of the KL.

`params` is {"model", "discriminator"}, with a quantiser also "quantiser", the averages of its codebooks. Both networks
learn in one step from one forward pass of the autoencoder: the gradients of all losses with respect to the decoded
audio are summed and pulled back through the autoencoder once.

Unless `plain_magnitudes` is set, spectra are divided by the root of their window's energy: white noise of standard
deviation s then has magnitudes near s at every resolution, and weights mean the same for any set of resolutions.

A decoder of magnitudes borrows the original's phase in training, so that losses at other resolutions than its own and
the discriminators get a waveform; the phase is estimated at decoding time only.

With two channels, the spectral losses also compare their sum and their difference, in which errors of the stereo image
show.

Legend: B batch, T samples, C channels, D latent channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from melody_jax import spectral
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.models import discriminators, rvq, vae
from melody_jax.models.discriminators import Discrimination, DiscriminatorConfig
from melody_jax.models.functional import Params
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.stft_synthesis import MagnitudePair
from melody_jax.models.vae import VAEConfig
from melody_jax.options import check_fields, option
from melody_jax.release import network_roles
from melody_jax.roles import Roles
from melody_jax.training import tracked_codebooks
from melody_jax.training.audio_losses import average, balanced, discriminator_loss, distance, log_mel, views
from melody_jax.training.latent_statistics import whiten
from melody_jax.training.stage import Batch, Metrics, Stage
from melody_jax.training.tracked_codebooks import Quantised

Spectra = dict[int, Float[Array, "B frames bins"]]
"""n_fft -> magnitudes."""


@dataclass(frozen=True, kw_only=True)
class VAEStage(Stage):
    """Trains `models/vae.py` on batches {"audio": (B, T), or (B, T, C)}, T a multiple of `model.hop`."""

    name: ClassVar[str] = "vae"
    batch: ClassVar[str] = "audio"

    model: VAEConfig = field(default_factory=VAEConfig)
    """Shape of the autoencoder."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Shapes of the discriminators, which see the channels of the model."""
    resolutions: tuple[tuple[int, int], ...] = ((2048, 480), (1024, 240), (512, 120), (256, 60))
    """(n_fft, hop) in samples of the spectral losses."""
    window_share: float = option(1.0, above=0, most=1)
    """Length of their windows as a fraction of n_fft (0.5 in the paper)."""
    plain_magnitudes: bool = False
    """Uses raw magnitudes, not divided by the root of the window's energy (the paper's literal loss)."""
    linear_weight: float = option(10.0, least=0)
    """Weight of the L1 distance of magnitudes (mean over bins and frames, mean over resolutions)."""
    log_weight: float = option(0.5, least=0)
    """Weight of the L1 distance of log magnitudes, nepers (same means)."""
    log_floor: float = option(1e-3, above=0)
    """Added to magnitudes before the logarithm: 60 dB below noise of full scale."""
    loss_corner_hz: float = option(0.0, least=0)
    """Above 0: bins weigh 1 / (frequency + this) in the spectral losses, scaled to a mean of 1, so that octaves above
    this frequency count equally. 0: all bins weigh the same, and the bass, a few bins of many, hardly counts."""
    magnitude_weight: float = option(0.0, least=0)
    """Weight of the same two losses between the magnitudes that the decoder writes and the original's at the decoder's
    windows. The spectral losses alone see them after a borrowed phase and an inverse STFT."""
    quantile: float = 0.5
    """Quantile of the magnitudes, above 0 and below 1, that the spectral losses aim at where a magnitude cannot be
    predicted. 0.5 (plain L1) is the median, which makes noise 1.6 dB too quiet; 0.632 is the RMS of noise."""
    mel_weight: float = option(0.5, least=0)
    """Weight of the L1 distance of log mel magnitudes, nepers."""
    kl_weight: float = option(3e-3, least=0)
    """Weight of the KL divergence to a unit Gaussian, nats per latent value."""
    commitment_weight: float = option(0.25, least=0)
    """With a quantiser: weight of the mean squared distance of what a level quantises from its codes."""
    codebook_decay: float = option(0.99, least=0, most=0.99999)
    """With a quantiser: decay per step of the averages that its codes are, less in the first steps, as for weights."""
    dead_share: float = option(0.2, least=0, most=1)
    """With a quantiser: a code used less often than this share of the mean moves to a random vector of the batch."""
    level_dropout: float = option(0.5, least=0, most=1)
    """With a quantiser: share of the items with a random number of levels, so that few levels make sound, too."""
    adversarial_start: int = option(2_000, least=0)
    """First step with discriminators; earlier steps skip their cost."""
    adversarial_ramp: int = option(500, least=0)
    """Steps over which the two adversarial weights rise from zero, while the discriminators are still untrained."""
    adversarial_weight: float = option(0.1, least=0)
    """Weight of the least-squares adversarial loss (summed over discriminators)."""
    feature_weight: float = option(0.5, least=0)
    """Weight of feature matching (mean over hidden layers, summed over discriminators)."""
    adversarial_share: float = option(0.0, least=0)
    """Above 0: the adversarial gradient at the decoded audio is scaled to this multiple of the norm of the
    reconstruction gradient of the same items, as EnCodec's balancer does per loss (arXiv 2210.13438). 0: no scaling."""
    adversarial_crop: int = option(17_280, least=1)
    """Samples of the random crop for the discriminators (17,280 = 0.72 s at 24 kHz), at most T."""
    adversarial_items: int = option(8, least=1)
    """Most items per batch for the discriminators: they cost more than the autoencoder."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.quantile < 1:
            raise UserError(f"quantile {self.quantile:g}: it must be above 0 and below 1")
        if self.magnitude_weight and not isinstance(self.model.codec, StftCodecConfig):
            raise UserError(
                f"magnitude_weight {self.magnitude_weight:g}: the decoder writes samples, not magnitudes; use 0"
            )

    @property
    def _discriminator(self) -> DiscriminatorConfig:
        return replace(self.discriminator, channels=self.model.audio_format.channels)

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the batches."""
        return self.model.audio_format

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        networks = {
            "model": network_roles(self.name, self.model),
            "discriminator": discriminators.roles(self._discriminator),
        }
        return networks | ({"quantiser": tracked_codebooks.ROLES} if self.model.quantiser else {})

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters, float32: {"model", "discriminator"}, with a quantiser also "quantiser"."""
        model_key, discriminator_key = jax.random.split(key)
        params = {
            "model": vae.init(self.model, model_key),
            "discriminator": discriminators.init(self._discriminator, discriminator_key),
        }
        if self.model.quantiser:
            params["quantiser"] = tracked_codebooks.init(self.model.quantiser, self.model.latent_width)
        return params

    def gradients(
        self, params: Params, batch: Batch, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Metrics]:
        """Gradients of the autoencoder's and the discriminators' losses, from one forward pass of the former."""
        target = batch["audio"].astype(jnp.float32)
        noise_key, crop_key, code_key = jax.random.split(key, 3)
        (audio, terms), model_vjp, quantised = jax.vjp(
            lambda model: self._autoencode(model, target, noise_key), params["model"], has_aux=True
        )
        (loss, metrics), d_audio = jax.value_and_grad(self._spectral_loss, has_aux=True)(audio, target)

        adversarial = partial(self._adversarial, params["discriminator"], audio, target, crop_key)
        skipped = partial(_zeros_like, jax.eval_shape(adversarial))
        d_adversarial, d_discriminator, gan_metrics = jax.lax.cond(
            step >= self.adversarial_start, adversarial, skipped
        )
        if self.adversarial_share:
            reference = d_audio[: self.adversarial_items]
            d_adversarial = balanced(d_adversarial, reference, self.adversarial_share)
        ramp = jnp.clip((step - self.adversarial_start) / max(self.adversarial_ramp, 1), 0.0, 1.0)
        weights = {
            "kl": self.kl_weight,
            "magnitude": self.magnitude_weight,
            "commitment": self.commitment_weight,
        }
        d_terms = {name: jnp.float32(weights[name]) for name in terms}
        (d_model,) = model_vjp((d_audio + ramp * d_adversarial, d_terms))
        total = loss + sum(weights[name] * value for name, value in terms.items())
        metrics = {"loss": total, **terms, **metrics, **gan_metrics}
        grads = {"model": d_model, "discriminator": d_discriminator}
        if quantised is not None:
            books, averages = tracked_codebooks.follow(
                params["quantiser"],
                params["model"]["codebooks"],
                quantised,
                self.codebook_decay,
                self.dead_share,
                code_key,
            )
            grads = grads | {"model": d_model | {"codebooks": books}, "quantiser": averages}
        return grads, metrics

    def evaluate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Reconstruction from the latents' mean or codes, with the decoder's own phase. "loss" is the weighted STFT
        loss.

        `latent_mean`, `latent_std` and `clipped` (fraction beyond `latent_clip`) describe the latents before clipping.
        With a quantiser: the use of each level.
        """
        del key
        target = batch["audio"].astype(jnp.float32)
        model = params["model"]
        raw, described = self._described(model, target)
        audio = vae.decode(model, self.model, vae.normalise(model, self.model, raw))
        _, metrics = self._spectral_loss(audio, target)
        latents = (raw - model["latent_mean"]) / model["latent_scale"]
        bound = jnp.inf if self.model.latent_clip is None else self.model.latent_clip
        return {
            "loss": self.linear_weight * metrics["linear"] + self.log_weight * metrics["log"],
            "log_mel_l1": metrics.pop("mel"),
            "latent_mean": latents.mean(),
            "latent_std": latents.std(),
            "clipped": jnp.mean(jnp.abs(latents) > bound),
            **described,
            **metrics,
        }

    def _described(self, model: Params, audio: Array) -> tuple[Array, Metrics]:
        """The latents to decode, before normalisation, and metrics of the bottleneck."""
        if self.model.mel:
            return vae.encoder_output(model, self.model, audio), {}
        if self.model.quantiser is None:
            mean, log_variance = vae.posterior(model, self.model, audio)
            noise = jnp.mean(jnp.exp(0.5 * log_variance)) / jnp.std(mean)
            return mean, {"kl": _kl(mean, log_variance), "noise": noise}
        codes = vae.codes(model, self.model, audio)
        return rvq.dequantise(model["codebooks"], codes), tracked_codebooks.usage(
            codes, self.model.quantiser.codes
        )

    def finish(self, model: Params, batches: Iterator[Batch], key: PRNGKeyArray) -> tuple[Params, Metrics]:
        """Whitens: latent_mean and latent_scale become the mean and standard deviation of each raw channel.

        With `model.latent_clip`, as in the paper, the scale is part of training and does not change.
        """
        del key
        if self.model.latent_clip is not None:
            return model, {}
        encode = jax.jit(lambda audio: self._described(model, audio)[0])
        return model | whiten(encode(jnp.asarray(batch["audio"])) for batch in batches), {}

    def _autoencode(
        self, model: Params, audio: Array, key: PRNGKeyArray
    ) -> tuple[tuple[Array, dict[str, Array]], Quantised | None]:
        """Decoded audio for the losses (`vae.reconstruct`), the terms that do not depend on it, by name, and what the
        quantiser did, if there is one."""
        raw, terms, quantised = self._bottleneck(model, audio, key)
        latents = vae.normalise(model, self.model, raw)
        decoded, pairs = vae.reconstruct(model, self.model, latents, audio)
        if self.magnitude_weight:
            terms["magnitude"] = self._magnitude_loss(pairs)
        return (decoded, terms), quantised

    def _bottleneck(
        self, model: Params, audio: Array, key: PRNGKeyArray
    ) -> tuple[Array, dict[str, Array], Quantised | None]:
        """Latents of a batch as the decoder gets them in training, before normalisation, and their loss by name."""
        if self.model.mel:
            return vae.encoder_output(model, self.model, audio), {}, None
        if self.model.quantiser is None:
            mean, log_variance = vae.posterior(model, self.model, audio)
            return vae.sample(mean, log_variance, key), {"kl": _kl(mean, log_variance)}, None
        latents = vae.encoder_output(model, self.model, audio)
        depths = tracked_codebooks.draw_levels(
            key, len(audio), self.model.quantiser.levels, self.level_dropout
        )
        quantised = tracked_codebooks.quantise(jax.lax.stop_gradient(model["codebooks"]), latents, depths)
        return quantised.latents, {"commitment": quantised.commitment}, quantised

    def _magnitude_loss(self, pairs: list[MagnitudePair]) -> Array:
        """The weighted linear and logarithmic losses of the magnitudes that the decoder writes, mean over windows."""
        losses = []
        for decoded, original, frequencies in pairs:
            linear, log = self._distances(decoded, original, frequencies)
            losses.append(self.linear_weight * linear + self.log_weight * log)
        return average(losses)

    def _distances(self, size: Array, original: Array, frequencies: np.ndarray) -> tuple[Array, Array]:
        """L1 distances of magnitudes, and of their logarithms, with `loss_corner_hz` and `quantile` applied."""
        weights = None
        if self.loss_corner_hz:
            weights = 1 / (frequencies + self.loss_corner_hz)
            weights = (weights / weights.mean()).astype(np.float32)
        log_size = jnp.log(size + self.log_floor)
        log_original = jnp.log(original + self.log_floor)
        linear = distance(size, original, weights, self.quantile)
        return linear, distance(log_size, log_original, weights, self.quantile)

    def _spectra(self, rows: Array) -> Spectra:
        """Magnitudes of rows (`views`) per resolution, over the root of the window's energy unless plain."""
        spectra = {}
        for n_fft, hop in self.resolutions:
            window = round(n_fft * self.window_share)
            gain = 1.0 if self.plain_magnitudes else spectral.window_gain(window)
            spectra[n_fft] = spectral.magnitude(spectral.stft(rows, n_fft, hop, window)) / gain
        return spectra

    def _spectral_loss(self, audio: Array, target: Array) -> tuple[Array, Metrics]:
        """The weighted sum of the spectral losses, and its terms."""
        linear = []
        log = []
        rate = self.model.audio_format.sample_rate
        decoded = views(audio)
        originals = views(target)
        targets = self._spectra(originals)
        for n_fft, size in self._spectra(decoded).items():
            original = targets[n_fft]
            frequencies = np.arange(n_fft // 2 + 1) * rate / n_fft
            distances = self._distances(size, original, frequencies)
            linear.append(distances[0])
            log.append(distances[1])
        mel = distance(log_mel(decoded, rate), log_mel(originals, rate))
        terms = {"linear": average(linear), "log": average(log), "mel": mel}
        loss = self.linear_weight * terms["linear"] + self.log_weight * terms["log"] + self.mel_weight * mel
        return loss, terms

    def _adversarial(
        self, discriminator: Params, audio: Array, target: Array, key: PRNGKeyArray
    ) -> tuple[Array, Params, Metrics]:
        """Gradient at the decoded audio, gradients of the discriminators, metrics. One random crop per item.

        One pass over decoded audio serves both losses: its vector-Jacobian product gives the gradients of the weights
        for one and of the audio for the other.
        """
        length = min(self.adversarial_crop, audio.shape[1])
        items = min(self.adversarial_items, audio.shape[0])
        starts = jax.random.randint(key, (items,), 0, audio.shape[1] - length + 1)

        def crop(x: Array) -> Array:
            crop_item = lambda item, start: jax.lax.dynamic_slice_in_dim(item, start, length)  # noqa: E731
            return jax.vmap(crop_item)(x[:items], starts)

        def discriminate(discriminator: Params, x: Array) -> list[Discrimination]:
            return discriminators.discriminate(discriminator, self._discriminator, x)

        fake_crop, crop_vjp = jax.vjp(crop, audio)
        fake, fake_vjp = jax.vjp(discriminate, discriminator, fake_crop)
        real, real_vjp = jax.vjp(lambda params: discriminate(params, crop(target)), discriminator)

        loss, (d_real, d_fake) = jax.value_and_grad(discriminator_loss, argnums=(0, 1))(real, fake)
        d_discriminator = jax.tree.map(jnp.add, real_vjp(d_real)[0], fake_vjp(d_fake)[0])
        (_, metrics), d_output = jax.value_and_grad(self._generator_loss, has_aux=True)(fake, real)
        (d_audio,) = crop_vjp(fake_vjp(d_output)[1])
        return d_audio, d_discriminator, metrics | {"discriminator": loss}

    def _generator_loss(
        self, fake: list[Discrimination], real: list[Discrimination]
    ) -> tuple[Array, Metrics]:
        """The decoder's loss: least-squares adversarial loss plus feature matching."""
        adversarial = jnp.float32(0)
        matching = jnp.float32(0)
        for (logits, fake_features), (_, real_features) in zip(fake, real, strict=True):
            adversarial += jnp.mean((logits - 1) ** 2)
            matching += average([distance(a, b) for a, b in zip(fake_features, real_features, strict=True)])
        loss = self.adversarial_weight * adversarial + self.feature_weight * matching
        return loss, {"adversarial": adversarial, "feature": matching}


def _zeros_like(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _kl(mean: Array, log_variance: Array) -> Array:
    """KL divergence to a unit Gaussian, nats, mean over all latent values."""
    return 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
