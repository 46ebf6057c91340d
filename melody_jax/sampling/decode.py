"""Decodes latents to a waveform part by part, in memory that does not grow with the length of the clip.

A decoded sample depends only on the latents within the decoder's reach (`vae.decoder_reach`), and a limited
sample only on the samples within the limiter's reach. Each part is therefore decoded together with `context`
latents on either side, whose samples are discarded. At the ends of a clip, where the decoder pads with zeros,
the window is aligned with the end:

    latents   |--------------------------------------------------|
    windows   [=========·····]                                       ===== decoded samples that are returned
                  [·····=====·····]                                  ····· context, discarded
                       [·····=====·····]
                                        ...  [·····==============]

All windows have one length, hence one compiled program; only a clip shorter than a window has another. B
batch, L latents, D latent channels, T samples.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32

from melody_jax import loudness
from melody_jax.errors import UserError
from melody_jax.models import vae
from melody_jax.models.functional import Params
from melody_jax.models.vae import VAEConfig
from melody_jax.sampling.item_controls import Arrays
from melody_jax.sampling.windows import latents_to_wave


def limiter_reach(sample_rate: int) -> int:
    """Samples on either side that affect a sample of `loudness.peak_limit`."""
    return 2 * round(loudness.LOOKAHEAD * sample_rate)


def context(config: VAEConfig) -> int:
    """Latents on either side of a part that affect its samples after the limiter."""
    return vae.decoder_reach(config) - (-limiter_reach(config.audio_format.sample_rate) // config.hop)


def decode(
    params: Params,
    config: VAEConfig,
    blocks: Iterable[Float[Arrays, "B _ D"]],  # L may differ from block to block
    window: int,
    mesh: Mesh | None = None,
    total: int | None = None,
) -> Iterator[Float32[np.ndarray, " B T *C"]]:
    """Parts (B, T), or (B, T, C), of a clip's waveform in [-1, 1] from consecutive blocks of its latents (B, L, D).

    Concatenated, they equal `vae.decode` of all latents with `loudness.peak_limit` applied to each item, to
    within about 1e-5. L may differ from block to block. A part is yielded once its window has arrived and another
    latent follows, so a clip of one window is decoded in one piece.

    window: latents decoded at a time, more than 2 `context(config)`; of each window 2 `context` are decoded
    again.
    mesh: splits the items over devices.
    total: latents of the clip. If it is given, a part does not wait for the latent after its window.
    """
    margin = context(config)
    rate = config.audio_format.sample_rate
    limiter = limiter_reach(rate)
    if window <= 2 * margin:
        raise UserError(f"a window of {window} latents is all context; it must be above {2 * margin}")

    def decode_window(latents: np.ndarray, number: int, first: int, last: int) -> np.ndarray:
        """The samples of latents `first` to `last` of a window that begins at latent `number` of the clip."""
        wave = np.asarray(latents_to_wave(params, config, latents, np.int32(number), mesh))
        begin = first * config.hop
        end = last * config.hop
        reach = min(begin, limiter)
        around = wave[:, begin - reach : end + limiter]
        limited = [loudness.peak_limit(item, sample_rate=rate) for item in around]
        return np.stack([item[reach : reach + end - begin] for item in limited])

    buffer: np.ndarray | None = None  # the latest latents, at most a window and a block
    arrived = 0  # number of latents so far
    start = 0  # where in the clip the next window starts
    for block in blocks:
        latents = np.asarray(block)
        buffer = latents if buffer is None else np.concatenate([buffer, latents], axis=1)
        arrived += latents.shape[1]
        while arrived - start > window or (
            arrived - start == window and total is not None and arrived < total
        ):
            offset = start - (arrived - buffer.shape[1])
            first = margin if start else 0
            yield decode_window(buffer[:, offset : offset + window], start, first, window - margin)
            start += window - 2 * margin
        buffer = buffer[:, -window:]
    if buffer is not None:
        offset = arrived - buffer.shape[1]
        first = start + margin - offset if start else 0
        yield decode_window(buffer, offset, first, buffer.shape[1])


def truncate(parts: Iterable[np.ndarray], samples: int | None) -> Iterator[np.ndarray]:
    """The first `samples` samples of the parts (rows, n, ...); None: all."""
    remaining = math.inf if samples is None else samples
    for part in parts:
        yield part[:, : int(min(remaining, part.shape[1]))]
        remaining -= part.shape[1]
        if remaining <= 0:
            return
