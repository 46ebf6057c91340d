"""Training of Moûsai's autoencoder (arXiv 2301.11757): the velocity error of a diffusion that follows the latents.

Encoder and decoder learn together. Every window has one angle, uniform in [0, pi/2].

B batch, T samples, F frames, E numbers of a frame.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from melody_jax import diffusion, parameterisation
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.models import diffusion_codec
from melody_jax.models.diffusion_codec import DiffusionCodecConfig
from melody_jax.models.functional import Params
from melody_jax.release import network_roles
from melody_jax.roles import Roles
from melody_jax.training.angle_errors import FIXED_ANGLES
from melody_jax.training.latent_statistics import whiten
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionCodecStage(Stage):
    """Trains `models/diffusion_codec.py` on batches {"audio": (B, T), or (B, T, C)}."""

    name: ClassVar[str] = "dmae"
    batch: ClassVar[str] = "audio"

    model: DiffusionCodecConfig = dataclasses.field(default_factory=DiffusionCodecConfig)
    """Shape of the autoencoder."""

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the batches."""
        return self.model.audio_format

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        return {"model": network_roles(self.name, self.model)}

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters, float32."""
        return {"model": diffusion_codec.init(self.model, key)}

    def gradients(
        self, params: Params, batch: Batch, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Metrics]:
        """Gradients of the velocity error on {"audio"}."""

        def loss(trained: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            angle_key, noise_key = jax.random.split(key)
            audio = batch["audio"].astype(jnp.float32)
            decoder = self.model.decoder
            angle = jax.random.uniform(angle_key, (len(audio), 1), maxval=diffusion.HALF_PI)
            angle = parameterisation.angle_from_noise_input(decoder.objective, decoder.sigma_data, angle)
            error = self._errors(trained["model"], audio, angle, noise_key).mean(axis=-1)
            weight = parameterisation.loss_weight(decoder.objective, decoder.sigma_data, angle)
            return (error * weight).mean(), {}

        return loss_gradients(loss, params, batch, key)

    def _errors(
        self, model: Params, audio: Array, angle: Float[Array, "B _"], key: PRNGKeyArray
    ) -> Float[Array, "B F E"]:
        """Squared velocity errors at one angle per item."""
        frames = diffusion_codec.to_frames(self.model, audio)
        if frames.shape[1] != self.model.decoder.frames:
            samples = self.model.decoder.frames * self.model.codec.frame_hop
            raise UserError(
                f"data.crop_samples is {audio.shape[1]}; {self.model.decoder.frames} frames are {samples}"
            )
        angle = jnp.broadcast_to(angle, frames.shape[:2])
        noisy, target = diffusion.corrupt(frames, jax.random.normal(key, frames.shape), angle)
        raw = diffusion_codec.encode_raw(model, self.model, audio)
        return (diffusion_codec.velocity(model, self.model, noisy, angle, raw) - target) ** 2

    def evaluate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Velocity errors of a held-out batch: "loss_at_0.2", 0.6, 1.0 and 1.4, and "loss", their mean.

        `latent_std` is that of the latents before normalisation, which lie in [-1, 1]; `frame_std` should be near 1,
        otherwise change `model.frame_scale`.
        """
        audio = batch["audio"].astype(jnp.float32)

        def error(angle: Array) -> Array:
            return self._errors(params["model"], audio, jnp.full((len(audio), 1), angle), key).mean()

        errors = jax.lax.map(error, jnp.array(FIXED_ANGLES))  # compiles once
        raw = diffusion_codec.encode_raw(params["model"], self.model, audio)
        return {
            "loss": errors.mean(),
            **{f"loss_at_{angle}": value for angle, value in zip(FIXED_ANGLES, errors, strict=True)},
            "latent_std": raw.std(),
            "frame_std": diffusion_codec.to_frames(self.model, audio).std(),
        }

    def finish(self, model: Params, batches: Iterator[Batch], key: PRNGKeyArray) -> tuple[Params, Metrics]:
        """Whitens: latent_mean and latent_scale become the mean and standard deviation of each raw channel."""
        del key
        encode = jax.jit(lambda audio: diffusion_codec.encode_raw(model, self.model, audio))
        return model | whiten(encode(jnp.asarray(batch["audio"])) for batch in batches), {}
