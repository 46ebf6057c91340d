"""Latents to waveform a stretch at a time: memory that does not grow, and the sound of decoding all at once.

A sample of the decoder's depends on the latents that lie within its reach (`vae.decoder_reach`), and the peak limiter
on the samples within its own. So each stretch is decoded together with `context` latents on either side, whose sound is
thrown away; at the ends of a piece, where the decoder sees zeros beyond, a window lies flush with them instead:

    latents   |--------------------------------------------------|
    windows   [=========·····]                                       ===== kept
                  [·····=====·····]                                  ····· context, thrown away
                       [·····=====·····]
                                        ...  [·····==============]

All windows have one length, hence one compiled program; only a piece shorter than a window has another. B batch, L
latents, D latent channels, T samples.
"""

from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from melody_jax import audio
from melody_jax.errors import UserError
from melody_jax.models import vae
from melody_jax.models.functional import Params
from melody_jax.models.vae import VAEConfig
from melody_jax.sampling.windows import latents_to_wave

LIMITER_REACH = 2 * round(audio.LOOKAHEAD * audio.SAMPLE_RATE)
"""Samples to either side that `audio.peak_limit` looks at."""


def context(config: VAEConfig) -> int:
    """Latents on either side of a stretch on which its limited sound can depend."""
    return vae.decoder_reach(config) + -(-LIMITER_REACH // config.hop)


def decode(
    params: Params,
    config: VAEConfig,
    blocks: Iterable[np.ndarray | jax.Array],
    window: int,
    mesh: Mesh | None = None,
) -> Iterator[np.ndarray]:
    """Blocks of a piece's latents (B, L, D), one after the other -> float32 (B, T) stretches of its sound in [-1, 1].

    Put together they are `vae.decode` of all the latents with `audio.peak_limit` applied to each item, to about 1e-5.
    L may differ from block to block. A stretch comes as soon as `window` latents and one more are there, so that a
    piece of one window is decoded once, and whole.

    window: latents decoded at a time, more than 2 `context(config)`; of each window 2 `context` are decoded again.
    mesh: spreads the items over devices.
    """
    margin = context(config)
    if window <= 2 * margin:
        raise UserError(f"a window of {window} latents is all context; it must be above {2 * margin}")

    def sound(latents: np.ndarray, number: int, first: int, last: int) -> np.ndarray:
        """The limited sound of latents `first` to `last` of a window that begins at latent `number` of the piece."""
        wave = np.asarray(latents_to_wave(params, config, latents, np.int32(number), mesh))
        begin, stop = first * config.hop, last * config.hop
        before = min(begin, LIMITER_REACH)
        around = wave[:, begin - before : stop + LIMITER_REACH]
        return np.stack([audio.peak_limit(item)[before : before + stop - begin] for item in around])

    held, start, end = (
        None,
        0,
        0,
    )  # the last latents so far; where in the piece the next window starts, and they end
    for block in blocks:
        held = np.asarray(block) if held is None else np.concatenate([held, np.asarray(block)], axis=1)
        end += block.shape[1]
        while end - start > window:
            at = start - (end - held.shape[1])
            yield sound(held[:, at : at + window], start, margin if start else 0, window - margin)
            start += window - 2 * margin
        held = held[:, -window:]
    if held is not None:
        begin = end - held.shape[1]
        yield sound(held, begin, start + margin - begin if start else 0, held.shape[1])
