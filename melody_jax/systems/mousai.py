"""Moûsai (arXiv 2301.11757): a text, by a latent diffusion and the diffusion of an autoencoder's decoder, to music.

    prompt --text tower--> word pieces --latent_generator--> latents --dmae, a diffusion too--> spectra --> waveform

The generator is guided by the words; the decoder follows the latents alone. A clip is one window, without continuation.

A release holds the networks `mulan`, `latent_generator` and `dmae`.

B batch, L latents, D latent width, F frames, E numbers of a frame.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from melody_jax import loudness
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.models import diffusion_codec
from melody_jax.models.conditioning import WordPieces
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.diffusion_codec import DiffusionCodecConfig
from melody_jax.models.functional import Params
from melody_jax.sampling.cascade import load_networks
from melody_jax.sampling.item_controls import Controls, fold_in, item_keys
from melody_jax.sampling.precision import in_32_bits
from melody_jax.sampling.system import require_networks
from melody_jax.systems.text_diffusion import (
    Program,
    TextDiffusion,
    check_follows,
    diffuse,
    follow_words,
)

NETWORKS = ("mulan", "latent_generator", "dmae")
"""Networks of the system."""
GENERATOR, DECODER = range(2)
"""Uses of randomness."""


class Mousai(TextDiffusion):
    """A loaded Moûsai: `sample_rate` in Hz, `channels`, `window_seconds`, `params`, `configs`.

    Raises `UserError` if the networks do not belong together.
    """

    system = "mousai"
    diffusions = 2

    def check_networks(self) -> None:
        """Raises `UserError` unless the networks fit each other."""
        generator = self.configs["latent_generator"]
        check_follows(
            generator, "latent_generator", self.configs["mulan"].text.width, self.configs["dmae"].latent_width
        )
        if generator.lower_ratio:
            raise UserError(
                "generator refines frames of a lower rate; Moûsai's makes latents from words alone"
            )

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the clips: those of the autoencoder."""
        return self.configs["dmae"].audio_format

    @property
    def text_length(self) -> int:
        """Most word pieces of a prompt."""
        return self.configs["latent_generator"].text.length

    @property
    def window_samples(self) -> int:
        """Samples of a window, the longest clip."""
        return self.configs["latent_generator"].frames * self.configs["dmae"].hop

    def waves(
        self, program: Program, words: WordPieces, controls: Controls
    ) -> Float32[np.ndarray, " B T *C"]:
        """The waveforms of a window in [-1, 1]; item i depends on row i of its inputs alone."""
        return self.decode(program, controls, self.latents(program, words, controls))

    def latents(self, program: Program, words: WordPieces, controls: Controls) -> Float[Array, "B L D"]:
        """The normalised latents of a window."""
        network = self.params["latent_generator"]
        return _write_latents(network, self.configs["latent_generator"], program, words, controls)

    def decode(
        self, program: Program, controls: Controls, latents: Float[Array, "B L D"]
    ) -> Float32[np.ndarray, " B T *C"]:
        """The waveforms of normalised latents in [-1, 1]."""
        waves = np.asarray(decode(self.params["dmae"], self.configs["dmae"], program, controls, latents))
        return np.stack([loudness.peak_limit(wave, sample_rate=self.sample_rate) for wave in waves])


@partial(jax.jit, static_argnames=("config", "program"))
def _write_latents(
    params: Params, config: DenoiserConfig, program: Program, words: WordPieces, controls: Controls
) -> Float[Array, "B L D"]:
    """The latents that the generator writes."""
    return follow_words(params, config, program, words, controls, fold_in(item_keys(controls), GENERATOR))


@partial(jax.jit, static_argnames=("config", "program"))
def decode(
    params: Params,
    config: DiffusionCodecConfig,
    program: Program,
    controls: Controls,
    latents: Float[Array, "B L D"],
) -> Float[Array, " B T *C"]:
    """The audio that the decoder writes from noise and latents."""
    # the encoder's latents lie in [-1, 1]; guided ones may not
    raw = jnp.clip(diffusion_codec.denormalise(params, latents), -1, 1)

    def velocity(noisy: Array, angle: Array) -> Array:
        return diffusion_codec.velocity(params, config, noisy, angle, raw)

    shape = (latents.shape[1] * config.codec.downsample, config.decoder.latent_dim)
    keys = fold_in(item_keys(controls), DECODER)
    return diffusion_codec.from_frames(config, diffuse(velocity, shape, program, keys))


@in_32_bits
def load(name: str, *, folder: str | Path | None = None) -> Mousai:
    """The Moûsai released as `name`, from the package or from `folder/name`; nothing is downloaded.

    Raises `UserError` if there is no such release, a network is missing (the message says how to train it) or damaged,
    or they do not belong together.
    """
    require_networks(name, folder, NETWORKS, "mousai")
    params, configs, hashes, tokenizer = load_networks(name, folder, NETWORKS)
    assert tokenizer is not None
    return Mousai(params, configs, hashes, tokenizer)
