"""Short-time spectra in JAX: STFT, its inverse, mel filters. Always float32, differentiable.

Frame i is centred on sample i * hop + (hop - 1) / 2, so T // hop frames cover T samples: their centres do not overlap
and no frame is superfluous. The ends are padded with zeros. Frames are cut by reshape and concatenation of shifted hops
instead of a gather, whose gradient would be a scatter.

B batch, T samples, F frames, M bands.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Inexact

from melody_jax.audio_format import KALDI_RATE, SAMPLE_RATE
from melody_jax.errors import UserError

DAMPING = 0.3
"""Default damping of Griffin-Lim, see `griffin_lim_spectrum`."""


@lru_cache(maxsize=64)
def hann(n_fft: int, win: int | None = None) -> Float[np.ndarray, " {n_fft}"]:
    """The periodic Hann window of `win` samples (default n_fft) in the middle of n_fft samples, float32 (n_fft,)."""
    win = n_fft if win is None else win
    if not 0 < win <= n_fft:
        raise UserError(f"window of {win} samples: it must lie between 1 and n_fft = {n_fft}")
    window = np.zeros(n_fft, np.float32)
    start = (n_fft - win) // 2
    window[start : start + win] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)
    return window


def frame(
    audio: Float[Array | np.ndarray, "B T"], length: int, hop: int, center: bool = True
) -> Float[Array, "B F {length}"]:
    """Overlapping frames: (B, T) -> (B, F, length).

    center: T // hop frames, with (length - hop) // 2 zeros in front and the remaining padding behind; False: only the
    1 + (T - length) // hop frames that lie inside, without padding. Raises `UserError` if not a single frame fits.
    """
    samples = audio.shape[-1]
    frames = samples // hop if center else 1 + (samples - length) // hop
    if frames < 1 or hop > length:
        raise UserError(
            f"{samples} samples do not hold one frame of {length} at hop {hop} (hop must not exceed it)"
        )
    hops = -(-length // hop)
    left = (length - hop) // 2 if center else 0
    right = (frames + hops - 1) * hop - left - samples
    padded = jnp.pad(audio, ((0, 0), (left, max(right, 0))))[:, : (frames + hops - 1) * hop]
    grid = padded.reshape(audio.shape[0], frames + hops - 1, hop)
    return jnp.concatenate([grid[:, i : i + frames] for i in range(hops)], axis=-1)[..., :length]


def overlap_add(frames: Float[Array, "B F length"], hop: int) -> Float[Array, "B T"]:
    """The transpose of `frame` with center: (B, F, length) -> (B, F * hop); samples outside are dropped."""
    batch, count, length = frames.shape
    hops = -(-length // hop)
    padded = jnp.pad(frames, ((0, 0), (0, 0), (0, hops * hop - length))).reshape(batch, count, hops, hop)
    total = sum(jnp.pad(padded[:, :, i], ((0, 0), (i, hops - 1 - i), (0, 0))) for i in range(hops))
    left = (length - hop) // 2
    return jnp.reshape(total, (batch, -1))[:, left : left + count * hop]


def stft(
    audio: Float[Array | np.ndarray, "B T"], n_fft: int, hop: int, win: int | None = None, center: bool = True
) -> Complex[Array, "B F {n_fft}//2+1"]:
    """Short-time Fourier transform with a Hann window, unnormalised: (B, T) -> complex64 (B, F, n_fft // 2 + 1).

    `win` is the length of the window (default n_fft), `center` as in `frame`.
    """
    return jnp.fft.rfft(frame(audio.astype(jnp.float32), n_fft, hop, center) * hann(n_fft, win), axis=-1)


def window_gain(n_fft: int) -> float:
    """The root of the Hann window's energy: white noise of standard deviation s has magnitudes near s times it."""
    return float((hann(n_fft) ** 2).sum() ** 0.5)


@lru_cache(maxsize=64)
def _synthesis_gain(frames: int, n_fft: int, hop: int, win: int | None) -> np.ndarray:
    """1 / (sum of squared windows) at each of the frames * hop samples."""
    left = (n_fft - hop) // 2
    total = np.zeros((frames - 1) * hop + n_fft)
    for i in range(frames):
        total[i * hop : i * hop + n_fft] += hann(n_fft, win) ** 2
    total = np.pad(total, (0, hop))[left : left + frames * hop]
    if total.min() < 1e-4:
        raise UserError(f"a window of {win or n_fft} samples at hop {hop} leaves gaps; use a smaller hop")
    return (1 / total).astype(np.float32)


def istft(
    spectrum: Inexact[Array, "B F bins"], n_fft: int, hop: int, win: int | None = None
) -> Float[Array, "B F*{hop}"]:
    """Least-squares inverse of the centred `stft`: (B, F, n_fft // 2 + 1) -> float32 (B, F * hop).

    Exact on spectra from `stft`. Raises `UserError` if the windows do not overlap enough.
    """
    frames = jnp.fft.irfft(spectrum, n=n_fft, axis=-1) * hann(n_fft, win)
    return overlap_add(frames, hop) * _synthesis_gain(spectrum.shape[1], n_fft, hop, win)


class Anchor(NamedTuple):
    """Part of a spectrum that a phase search does not change."""

    spectrum: Complex[Array, "B F bins"]
    """A consistent spectrum: the `stft` of some waveform."""
    share: Float[np.ndarray, " bins"]
    """Weight of that spectrum in each bin, from 0 (searched) to 1 (fixed). In between, the two are blended."""

    def blend(self, spectrum: Complex[Array, "B F bins"]) -> Complex[Array, "B F bins"]:
        """The anchor with its weight, and another spectrum with the remaining weight."""
        share = jnp.asarray(self.share)
        return share * self.spectrum + (1 - share) * spectrum


def griffin_lim_spectrum(
    magnitudes: Float[Array, "B F bins"],
    n_fft: int,
    hop: int,
    steps: int,
    first: ArrayLike = 0,
    anchor: Anchor | None = None,
    momentum: float = 0.99,
    damping: float = DAMPING,
) -> Complex[Array, "B F bins"]:
    """Magnitudes (B, F, n_fft // 2 + 1) with phases that fit each other: complex64 of the same shape.

    The fast Griffin-Lim algorithm (Perraudin, Balazs and Sondergaard 2013, doi 10.1109/WASPAA.2013.6701851). Initial
    phases are random but fixed, so equal magnitudes give equal spectra. steps: 0 or more; each is an inverse and a
    forward transform. momentum: 0 is the original algorithm. first: index of the first frame, if these are part of a
    longer sequence; a frame's initial phases depend on its index only.

    anchor: a part of the spectrum that is fixed. Where the two blend, the search starts from the anchor's phases.

    damping: a bin whose current estimate is below about this fraction of its target magnitude gets less than the full
    magnitude; 0 is the published algorithm. Rounding decides the phase of such a bin, and the original algorithm
    amplifies it: clips of a batch then differ from single ones (docs/mini.md has the figures).
    """
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(first + jnp.arange(magnitudes.shape[1]))
    phases = jax.vmap(lambda key: jax.random.uniform(key, magnitudes.shape[2:], maxval=2 * np.pi))(keys)
    start = magnitudes * jnp.exp(1j * phases)
    floor = (damping * magnitudes) ** 2 + 1e-10

    def project(estimate: Array) -> Array:
        """The spectrum with the target magnitudes, and the anchor, that is nearest to the estimate."""
        spectrum = estimate * (magnitudes / jnp.sqrt(power(estimate) + floor))
        return spectrum if anchor is None else anchor.blend(spectrum)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        spectrum, previous = carry
        consistent = stft(istft(spectrum, n_fft, hop), n_fft, hop)
        return (project(consistent + momentum * (consistent - previous)), consistent), None

    if anchor is not None:
        start = project(anchor.spectrum + start * np.where(anchor.share > 0, np.float32(damping), 1))
    (spectrum, _), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), length=steps)
    return spectrum


def frame_reach(length: int, other: int, hop: int) -> int:
    """Frames before or after its own whose `other` samples overlap the `length` samples of a frame, at most."""
    return (length + other - 1) // (2 * hop)


def griffin_lim_reach(n_fft: int, hop: int, steps: int) -> int:
    """Receptive field of `griffin_lim_spectrum`: frames before or after its own that a hop depends on, at most."""
    hops = -(-n_fft // hop)
    return steps * frame_reach(n_fft, n_fft, hop) + hops // 2


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear (3 mel per 200 Hz) below 1 kHz, logarithmic (27 mel per factor 6.4) above."""
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def _triangles(frequencies: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """M triangles of peak 1, triangle m from edges[m] to edges[m + 2] (M + 2,), evaluated at (N, 1): (N, M)."""
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


@lru_cache(maxsize=16)
def mel_filterbank(
    n_mels: int = 80,
    n_fft: int = 1024,
    sample_rate: int = SAMPLE_RATE,
    fmin: float = 0.0,
    fmax: float | None = None,
) -> Float[np.ndarray, "{n_fft}//2+1 {n_mels}"]:
    """Triangular filters on Slaney's mel scale, each of unit area in Hz: float32 (n_fft // 2 + 1, n_mels).

    `fmax` defaults to half the sample rate. Apply it as `magnitudes @ filters`.
    """
    fmax = sample_rate / 2 if fmax is None else fmax
    if not 0 <= fmin < fmax <= sample_rate / 2:
        raise UserError(f"mel range {fmin}-{fmax} Hz: it must rise and stay within 0-{sample_rate / 2} Hz")
    edges = _mel_to_hz(np.linspace(_hz_to_mel(np.array(fmin)), _hz_to_mel(np.array(fmax)), n_mels + 2))
    bins = np.arange(n_fft // 2 + 1)[:, None] * sample_rate / n_fft
    return (_triangles(bins, edges) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


def power(spectrum: Complex[Array, "*shape"]) -> Float[Array, "*shape"]:
    """|spectrum| squared, of a complex array of any shape."""
    return spectrum.real**2 + spectrum.imag**2


def magnitude(spectrum: Complex[Array, "*shape"]) -> Float[Array, "*shape"]:
    """|spectrum| with a gradient that stays finite at zero (an offset of 1e-5 in quadrature)."""
    return jnp.sqrt(power(spectrum) + 1e-10)


def mel_frame(sample_rate: int) -> tuple[int, int]:
    """Samples in a window of a log-mel spectrogram and between two: 43 ms every 10 ms, 1,024 and 240 at 24 kHz."""
    scale = sample_rate / SAMPLE_RATE
    return 2 * round(512 * scale), round(240 * scale)


def log_mel(
    audio: Float[Array | np.ndarray, "B T"],
    n_fft: int = 1024,
    hop: int = 240,
    n_mels: int = 80,
    sample_rate: int = SAMPLE_RATE,
) -> Float[Array, "B F {n_mels}"]:
    """Natural logarithm of the mel magnitudes, floored at 1e-5: (B, T) -> float32 (B, T // hop, n_mels)."""
    filters = mel_filterbank(n_mels, n_fft, sample_rate)
    return jnp.log(jnp.maximum(magnitude(stft(audio, n_fft, hop)) @ filters, 1e-5))


def tempogram(
    log_spectrum: Float[Array, "B F M"], bands: int, lags: tuple[int, int]
) -> Float[Array, "B {bands} lags"]:
    """Autocorrelation of a clip's onsets: its rhythm, independent of pitch and timbre.

    The onsets of a band are the mean rise of its bins from frame to frame. The result is their autocorrelation at
    lags[0] <= lag < lags[1] frames, relative to lag 0: log magnitudes (B, F, M), M a multiple of `bands`, to
    (B, bands, lags[1] - lags[0]) in [-1, 1].
    """
    batch, frames, bins = log_spectrum.shape
    rise = jnp.maximum(jnp.diff(log_spectrum.astype(jnp.float32), axis=1), 0.0)
    onsets = rise.reshape(batch, frames - 1, bands, bins // bands).mean(-1)
    onsets = onsets - onsets.mean(axis=1, keepdims=True)
    size = frames + lags[1]  # zero padding, so that no lag wraps around
    correlation = jnp.fft.irfft(power(jnp.fft.rfft(onsets, size, axis=1)), size, axis=1).swapaxes(1, 2)
    return correlation[..., lags[0] : lags[1]] / (correlation[..., :1] + 1e-6)


@lru_cache(maxsize=8)
def _resampling_filter(up: int, down: int, reach: int) -> np.ndarray:
    """(down + 2 reach, up): matrix from `down` input samples, and `reach` more on either side, to `up` output samples.

    A sinc with its cutoff at 0.95 of the lower Nyquist frequency, under a Kaiser window (beta 8.6).
    """
    offsets = np.arange(up) * down / up - np.arange(-reach, down + reach)[:, None]
    cutoff = 0.95 * min(1.0, up / down)
    window = np.i0(8.6 * np.sqrt(np.maximum(0.0, 1 - (offsets / reach) ** 2))) / np.i0(8.6)
    return (cutoff * np.sinc(cutoff * offsets) * window * (np.abs(offsets) < reach)).astype(np.float32)


def resample(
    audio: Float[Array | np.ndarray, "B T"], up: int, down: int, crossings: int = 32
) -> Float[Array, "B T//{down}*{up}"]:
    """Audio at up / down times its rate, inside a traced function: (B, T) -> (B, T // down * up).

    crossings: zero crossings of the sinc on either side, at the lower of the two rates. `audio.resample` is for files.
    """
    reach = round(crossings * max(1.0, down / up))
    return (frame(audio, down + 2 * reach, down) @ _resampling_filter(up, down, reach)).reshape(
        len(audio), -1
    )


@lru_cache(maxsize=4)
def _kaldi_filterbank(n_mels: int, n_fft: int, sample_rate: int, fmin: float) -> np.ndarray:
    """Kaldi's mel filters: triangles in mel = 1127 ln(1 + Hz / 700), peak 1: float32 (n_fft // 2 + 1, n_mels)."""

    def mel(hz: np.ndarray | float) -> np.ndarray:
        return np.asarray(1127 * np.log1p(np.asarray(hz) / 700))

    edges = np.linspace(mel(fmin), mel(sample_rate / 2), n_mels + 2)
    bins = mel(np.arange(n_fft // 2 + 1) * sample_rate / n_fft)[:, None]
    return _triangles(bins, edges).astype(np.float32)


def kaldi_log_mel(audio: Float[Array | np.ndarray, "B T"], n_mels: int = 128) -> Float[Array, "B F {n_mels}"]:
    """Kaldi's filterbank features of 16 kHz audio: (B, T) -> (B, 1 + (T - 400) // 160, n_mels), natural logarithm.

    25 ms frames every 10 ms without padding. Each frame's mean is removed, then pre-emphasis of 0.97 and a symmetric
    Hann window follow; 512-point power spectrum, bands from 20 Hz. AST and similar networks are trained on these.
    """
    frames = frame(audio.astype(jnp.float32), 400, 160, center=False)
    frames = frames - frames.mean(axis=-1, keepdims=True)
    previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    windowed = (frames - 0.97 * previous) * np.hanning(400).astype(np.float32)
    bands = power(jnp.fft.rfft(windowed, 512, axis=-1)) @ _kaldi_filterbank(n_mels, 512, KALDI_RATE, 20.0)
    return jnp.log(jnp.maximum(bands, 1.1920929e-7))
