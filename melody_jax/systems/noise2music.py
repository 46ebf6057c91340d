"""Noise2Music's spectrogram route (arXiv 2302.03917): a text, by two diffusions and a vocoder, to music.

    prompt --text tower--> word pieces --generator--> log mels of a low rate --upsampler--> log mels --vae--> waveform

Both diffusions are guided by the words. The upsampler sees the low rate with some noise, whose level it is told,
because what the generator writes is never quite what it was trained on. A clip is one window, without continuation.

A release holds the networks `mulan`, `generator`, `upsampler` and `vae`. The autoencoder may be any without a
quantiser. With `VAEConfig.mel` its latents are log mels, and it is a vocoder.

B batch, L latents, D latent width.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from melody_jax import diffusion
from melody_jax.errors import UserError
from melody_jax.models.conditioning import LowerFrames, WordPieces
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.functional import Params
from melody_jax.sampling.cascade import load_networks
from melody_jax.sampling.decode import context, decode
from melody_jax.sampling.item_controls import Controls, fold_in, item_keys, normal
from melody_jax.sampling.precision import in_32_bits
from melody_jax.sampling.system import require_networks
from melody_jax.systems.text_diffusion import (
    Program,
    TextDiffusion,
    check_follows,
    follow_words,
)

NETWORKS = ("mulan", "generator", "upsampler", "vae")
"""Networks of the system."""
GENERATOR, UPSAMPLER, LOWER = range(3)
"""Uses of randomness."""


class Noise2Music(TextDiffusion):
    """A loaded Noise2Music: `sample_rate` in Hz, `channels`, `window_seconds`, `params`, `configs`.

    Raises `UserError` if the networks do not belong together.
    """

    system = "noise2music"
    diffusions = 2

    def check_networks(self) -> None:
        """Raises `UserError` unless the networks fit each other."""
        generator, upsampler = (self.configs[name] for name in ("generator", "upsampler"))
        width = self.configs["mulan"].text.width
        for name, config in (("generator", generator), ("upsampler", upsampler)):
            check_follows(config, name, width, self.configs["vae"].latent_width)
        if not upsampler.lower_ratio or generator.frames * upsampler.lower_ratio != upsampler.frames:
            raise UserError(
                f"generator writes {generator.frames} frames, upsampler {upsampler.frames} from "
                f"{upsampler.lower_ratio} times fewer; take all files from one release"
            )

    @property
    def text_length(self) -> int:
        """Most word pieces of a prompt."""
        return self.configs["generator"].text.length

    @property
    def window_samples(self) -> int:
        """Samples of a window, the longest clip."""
        return self.configs["upsampler"].frames * self.configs["vae"].hop

    def latents(
        self,
        program: Program,
        words: WordPieces,
        controls: Controls,
        low: Float[Array, "B _ D"] | None = None,
    ) -> Float[Array, "B L D"]:
        """The latents of a window, from latents of a low rate; None: from those that the generator writes."""
        networks = {name: self.params[name] for name in ("generator", "upsampler")}
        configs = (self.configs["generator"], self.configs["upsampler"])
        return _sample(networks, configs, program, words, controls, low)

    def waves(
        self, program: Program, words: WordPieces, controls: Controls
    ) -> Float32[np.ndarray, " B T *C"]:
        """The waveforms of a window in [-1, 1]; item i depends on row i of its inputs alone."""
        return self.decode(self.latents(program, words, controls))

    def decode(self, latents: Float[Array, "B L D"]) -> Float32[np.ndarray, " B T *C"]:
        """The waveforms of the latents of a window in [-1, 1]."""
        config = self.configs["vae"]
        window = max(self.configs["upsampler"].frames, 4 * context(config))
        parts = decode(self.params["vae"], config, [latents], window)
        return np.concatenate(list(parts), axis=1)


@partial(jax.jit, static_argnames=("configs", "program"))
def _sample(
    params: dict[str, Params],
    configs: tuple[DenoiserConfig, DenoiserConfig],
    program: Program,
    words: WordPieces,
    controls: Controls,
    low: Float[Array, "B _ D"] | None,
) -> Float[Array, "B L D"]:
    """The latents that the upsampler writes from those of a low rate, or for None from the generator's."""
    keys = item_keys(controls)
    generator, upsampler = configs
    if low is None:
        low = follow_words(params["generator"], generator, program, words, controls, fold_in(keys, GENERATOR))
    noise = normal(fold_in(keys, LOWER), low.shape[1:])
    angle = upsampler.lower_noise / 2
    noisy, _ = diffusion.corrupt(low, noise, angle)
    lower = LowerFrames(noisy, jnp.full(len(low), angle))
    keys = fold_in(keys, UPSAMPLER)
    return follow_words(params["upsampler"], upsampler, program, words, controls, keys, lower)


@in_32_bits
def load(name: str, *, folder: str | Path | None = None) -> Noise2Music:
    """The Noise2Music released as `name`, from the package or from `folder/name`; nothing is downloaded.

    Raises `UserError` if there is no such release, a network is missing (the message says how to train it) or damaged,
    or they do not belong together.
    """
    require_networks(name, folder, NETWORKS, "noise2music")
    params, configs, hashes, tokenizer = load_networks(name, folder, NETWORKS)
    assert tokenizer is not None
    return Noise2Music(params, configs, hashes, tokenizer)
