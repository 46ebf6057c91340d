"""The VAE's losses (paper section 2.5, made affordable): spectral reconstruction, KL, and a GAN from some step on.

`params` is {"model", "discriminator"}. Both networks learn in one step from one forward pass of the autoencoder:
the losses' gradient with respect to the decoded audio is summed first and pulled back through the network once.

Unless they are to be plain, spectra are divided by the root of their window's energy, so that white noise of standard
deviation s has magnitudes near s at every resolution, and weights mean the same whatever the resolutions.

Where the decoder gives magnitudes they borrow the original's phase in training, so that the losses, at resolutions
other than the decoder's own too, and the discriminators hear a waveform; a phase is looked for in use only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models import discriminators, vae
from melody_jax.models.discriminators import DiscriminatorConfig, Judgement
from melody_jax.models.functional import Params
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stage import Batch, Metrics

Spectra = dict[int, jax.Array]


@dataclass(frozen=True, kw_only=True)
class VAEStage:
    """Trains `models/vae.py` on batches {"audio": (B, T)}, T a multiple of `model.hop`."""

    name: ClassVar[str] = "vae"
    batch: ClassVar[str] = "audio"

    model: VAEConfig = field(default_factory=VAEConfig)
    """Shape of the autoencoder."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Shapes of the discriminators."""
    resolutions: tuple[tuple[int, int], ...] = ((2048, 480), (1024, 240), (512, 120), (256, 60))
    """(n_fft, hop) in samples of the spectral losses."""
    window_share: float = 1.0
    """Length of their windows as a share of n_fft (0.5 in the paper)."""
    plain_magnitudes: bool = False
    """Magnitudes as they are, not over the root of the window's energy (the paper's literal loss)."""
    linear_weight: float = 10.0
    """Weight of the L1 between magnitudes (mean over bins and frames, mean over resolutions)."""
    log_weight: float = 0.5
    """Weight of the L1 between log magnitudes, nepers (mean likewise)."""
    log_floor: float = 1e-3
    """Added to magnitudes before the logarithm: 60 dB below noise of full scale."""
    mel_weight: float = 0.5
    """Weight of the L1 between log mel magnitudes, nepers."""
    kl_weight: float = 3e-3
    """Weight of the KL divergence to a unit Gaussian, nats per latent value (paper, Q16)."""
    adversarial_start: int = 2_000
    """First step with discriminators; they cost nothing before it."""
    adversarial_ramp: int = 500
    """Steps over which the two adversarial weights rise from zero, while the discriminators are still fresh."""
    adversarial_weight: float = 0.1
    """Weight of the least-squares adversarial loss (summed over discriminators)."""
    feature_weight: float = 0.5
    """Weight of feature matching (mean over hidden layers, summed over discriminators)."""
    adversarial_share: float = 0.0
    """Above 0, the adversarial losses' gradient at the decoded audio is scaled to this multiple of the reconstruction
    losses' norm there, for the same items (as EnCodec's balancer does per loss, arXiv 2210.13438); 0: as weighted."""
    adversarial_crop: int = 17_280
    """Samples of the random stretch that discriminators see (17,280 = 0.72 s at 24 kHz); at most the batch's T."""
    adversarial_items: int = 8
    """Items of a batch that discriminators see, at most: they cost more than the autoencoder."""

    def __post_init__(self) -> None:
        if not 0 < self.window_share <= 1:
            raise UserError(f"window_share {self.window_share}: it must be above 0 and at most 1")

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32: {"model", "discriminator"}."""
        keys = jax.random.split(key)
        judge = discriminators.init(self.discriminator, keys[1])
        return {"model": vae.init(self.model, keys[0]), "discriminator": judge}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients of the autoencoder's and the discriminators' losses, from one forward pass of the former."""
        target = batch["audio"].astype(jnp.float32)
        noise_key, crop_key = jax.random.split(key)
        (audio, kl), pull_back = jax.vjp(
            lambda model: self._autoencode(model, target, noise_key), params["model"]
        )
        (loss, metrics), d_audio = jax.value_and_grad(self._spectral, has_aux=True)(audio, target)

        judge = partial(self._adversarial, params["discriminator"], audio, target, crop_key)
        nothing = partial(_zeros_like, jax.eval_shape(judge))
        d_judged, d_judge, judged = jax.lax.cond(step >= self.adversarial_start, judge, nothing)
        if self.adversarial_share:
            d_judged = balanced(d_judged, d_audio[: self.adversarial_items], self.adversarial_share)
        ramp = jnp.clip((step - self.adversarial_start) / max(self.adversarial_ramp, 1), 0.0, 1.0)
        (d_model,) = pull_back((d_audio + ramp * d_judged, jnp.float32(self.kl_weight)))
        metrics = {"loss": loss + self.kl_weight * kl, "kl": kl, **metrics, **judged}
        return {"model": d_model, "discriminator": d_judge}, metrics

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """Reconstruction from the latents' mean, phase and all. "loss" is the MR-STFT term.

        Of the latents before clipping: `latent_mean`, `latent_std`, and `clipped`, the share beyond `latent_clip`.
        """
        del key
        target = batch["audio"].astype(jnp.float32)
        mean, log_variance = vae.posterior(params["model"], self.model, target)
        audio = vae.decode(params["model"], self.model, vae.normalise(params["model"], self.model, mean))
        _, metrics = self._spectral(audio, target)
        latents = (mean - params["model"]["latent_mean"]) / params["model"]["latent_scale"]
        bound = jnp.inf if self.model.latent_clip is None else self.model.latent_clip
        return {
            "loss": self.linear_weight * metrics["linear"] + self.log_weight * metrics["log"],
            "log_mel_l1": metrics.pop("mel"),
            "kl": _kl(mean, log_variance),
            "noise": jnp.mean(jnp.exp(0.5 * log_variance)) / jnp.std(mean),
            "latent_mean": latents.mean(),
            "latent_std": latents.std(),
            "clipped": jnp.mean(jnp.abs(latents) > bound),
            **metrics,
        }

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Whitens: latent_mean and latent_scale become the mean and standard deviation of each raw channel.

        Where `model.latent_clip` is set (the paper's kind), the scale is part of training and stays as it is.
        """
        del key
        if self.model.latent_clip is not None:
            return model, {}
        posterior = jax.jit(lambda audio: vae.posterior(model, self.model, audio)[0])
        count, total, squares = 0, jnp.zeros(self.model.latent_width), jnp.zeros(self.model.latent_width)
        for batch in batches:
            raw = posterior(jnp.asarray(batch["audio"])).reshape(-1, self.model.latent_width)
            count, total, squares = count + len(raw), total + raw.sum(0), squares + (raw * raw).sum(0)
        if count < 2:
            raise UserError("no audio to fit the latents' mean and scale on: give at least one batch")
        mean = total / count
        deviation = jnp.sqrt(jnp.maximum(squares / count - mean**2, 1e-8))
        return model | {"latent_mean": mean, "latent_scale": deviation}, {}

    def _autoencode(self, model: Params, audio: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Decoded audio as training hears it, and the KL term."""
        mean, log_variance = vae.posterior(model, self.model, audio)
        latents = vae.normalise(model, self.model, vae.sample(mean, log_variance, key))
        return vae.reconstruct(model, self.model, latents, audio), _kl(mean, log_variance)

    def _spectra(self, audio: jax.Array) -> Spectra:
        """n_fft -> magnitudes, over the root of the window's energy unless plain."""
        spectra = {}
        for n_fft, hop in self.resolutions:
            window = round(n_fft * self.window_share)
            gain = 1.0 if self.plain_magnitudes else spectral.window_gain(window)
            spectra[n_fft] = spectral.magnitude(spectral.stft(audio, n_fft, hop, window)) / gain
        return spectra

    def _spectral(self, audio: jax.Array, target: jax.Array) -> tuple[jax.Array, Metrics]:
        """The weighted spectral losses."""
        linear, log = [], []
        originals = self._spectra(target)
        for n_fft, size in self._spectra(audio).items():
            original = originals[n_fft]
            linear.append(_l1(size, original))
            log.append(_l1(jnp.log(size + self.log_floor), jnp.log(original + self.log_floor)))
        mel = _l1(spectral.log_mel(audio), spectral.log_mel(target))
        terms = {"linear": _average(linear), "log": _average(log), "mel": mel}
        loss = self.linear_weight * terms["linear"] + self.log_weight * terms["log"] + self.mel_weight * mel
        return loss, terms

    def _adversarial(
        self, judge: Params, audio: jax.Array, target: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Params, Metrics]:
        """Gradient for the decoded audio, gradients of the discriminators, metrics. One random crop an item.

        One pass over decoded audio serves both sides: its pull-back is taken twice, to the weights and to the audio.
        """
        crop, items = min(self.adversarial_crop, audio.shape[1]), min(self.adversarial_items, audio.shape[0])
        starts = jax.random.randint(key, (items,), 0, audio.shape[1] - crop + 1)

        def cut(x: jax.Array) -> jax.Array:
            return jax.vmap(lambda item, start: jax.lax.dynamic_slice(item, (start,), (crop,)))(
                x[:items], starts
            )

        def see(judge: Params, x: jax.Array) -> list[Judgement]:
            return discriminators.judge(judge, self.discriminator, x)

        fake_crop, paste = jax.vjp(cut, audio)
        fake, pull_fake = jax.vjp(see, judge, fake_crop)
        real, pull_real = jax.vjp(lambda judge: see(judge, cut(target)), judge)

        verdict, (d_real, d_fake) = jax.value_and_grad(_judge_loss, argnums=(0, 1))(real, fake)
        d_judge = jax.tree.map(jnp.add, pull_real(d_real)[0], pull_fake(d_fake)[0])
        (_, metrics), d_output = jax.value_and_grad(self._fooling_loss, has_aux=True)(fake, real)
        (d_audio,) = paste(pull_fake(d_output)[1])
        return d_audio, d_judge, metrics | {"discriminator": verdict}

    def _fooling_loss(self, fake: list[Judgement], real: list[Judgement]) -> tuple[jax.Array, Metrics]:
        """What the decoder minimises: least-squares adversarial loss and feature matching."""
        adversarial, matching = jnp.float32(0), jnp.float32(0)
        for (logits, f), (_, r) in zip(fake, real, strict=True):
            adversarial += jnp.mean((logits - 1) ** 2)
            matching += _average([_l1(a, b) for a, b in zip(f, r, strict=True)])
        loss = self.adversarial_weight * adversarial + self.feature_weight * matching
        return loss, {"adversarial": adversarial, "feature": matching}


def balanced(gradient: jax.Array, reference: jax.Array, share: float) -> jax.Array:
    """`gradient` scaled to `share` times the norm of `reference`; zeros stay zeros."""
    return gradient * share * jnp.linalg.norm(reference) / jnp.maximum(jnp.linalg.norm(gradient), 1e-12)


def _judge_loss(real: list[Judgement], fake: list[Judgement]) -> jax.Array:
    """Least squares: real towards one, decoded towards zero, summed over discriminators."""
    loss = jnp.float32(0)
    for (real_logits, _), (fake_logits, _) in zip(real, fake, strict=True):
        loss += jnp.mean((real_logits - 1) ** 2) + jnp.mean(fake_logits**2)
    return loss


def _zeros_like(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _l1(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean(jnp.abs(a - b))


def _average(terms: list[jax.Array]) -> jax.Array:
    return sum(terms, jnp.float32(0)) / max(len(terms), 1)


def _kl(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL divergence to a unit Gaussian, nats, mean over all latent values."""
    return 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
