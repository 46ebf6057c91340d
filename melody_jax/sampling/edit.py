"""One's own music, continued, mended or varied (paper section 3.5 and its demo; melody-paper Q22, Q23).

The source becomes semantic tokens and latents. What is new is filled window by window from left to right: a gap that
fits into half a window gets what is known on both sides of it, a longer one a chunk at a time as in algorithm 2. The
tokens of a gap are written by the language model several times, and those are taken which make what follows likeliest.
The source's own samples stay wherever nothing was asked for; over `FADE` seconds inside what is new one goes over into
the other.

U tokens of a window, n tokens of a piece, T samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import audio
from melody_jax.audio import SAMPLE_RATE, TOKEN_SAMPLES
from melody_jax.data.features import starts, stitch
from melody_jax.errors import UserError
from melody_jax.models import tokenizer, vae
from melody_jax.models.functional import Params
from melody_jax.sampling.prompts import read_sound
from melody_jax.sampling.request import MAX_SECONDS, Request
from melody_jax.sampling.windows import Window

FADE = 0.02
"""Seconds of every crossfade."""
GIVEN_STEPS = 8
"""A window's leading known tokens are given to the language model at once, in eighths: more is more programs."""
DRAWS = 8
"""Fillings that the language model writes of a gap with something after it."""


class Fill(NamedTuple):
    """One window, in tokens of the piece."""

    start: int
    """Where the window begins."""
    first: int
    """The first new token."""
    last: int
    """The token after the last new one."""
    closed: bool
    """Whether what comes after it in the window is known."""


@dataclass
class Piece:
    """A source on its way to what was asked for."""

    samples: np.ndarray
    """(T,) of the source, at its own level."""
    gain: float
    """What brings it to the level of the training music."""
    regions: list[tuple[int, int]]
    """Samples that are new, from and to."""
    semantic_tokens: np.ndarray
    """(n,)."""
    latents: np.ndarray
    """(n * rate, D)."""
    window: int
    """Tokens of a window, U."""
    fills: list[Fill]

    @property
    def rate(self) -> int:
        """Latents of a token."""
        return len(self.latents) // len(self.semantic_tokens)


class Gap(NamedTuple):
    """A window of every piece of a batch with what is new in it; see `generate.fill_tokens`."""

    window: Window
    new_tokens: np.ndarray
    """(B, U) bool."""
    new_frames: np.ndarray
    """(B, L) bool."""
    seconds: list[float]
    """Where in its piece each row's new part begins."""
    given: int
    """First tokens that every row knows."""
    draws: int
    """Fillings to choose from."""


def plan(regions: list[tuple[int, int]], length: int, window: int, step: int) -> list[Fill]:
    """The windows that fill the `regions`, tokens from and to, of a piece of `length` tokens.

    step: tokens by which a gap longer than half a window is filled at a time.
    """
    fills = []
    for first, end in regions:
        while first < end:
            closed = end < length and end - first <= window // 2
            before = (window - (end - first)) // 2 if closed else window - step
            start = min(max(first - before, 0), max(length - window, 0))
            last = (
                min(end, start + window) if closed or start == 0 else min(end, start + window, first + step)
            )
            fills.append(Fill(start, first, last, last == end < min(length, start + window)))
            first = last
    return fills


def prepare(request: Request, params: dict[str, Params], configs: dict[str, Any]) -> Piece:
    """The source of a request in tokens and latents, and the windows that will fill what is new.

    Raises:
        UserError: no tokenizer was loaded, the source cannot be read or is too short or too long, a region ends after
            it, or it is to be continued to a length that it has already.
    """
    if "tokenizer" not in params:
        raise UserError(
            "the tokenizer was not loaded; a source needs it: load(..., networks=(..., 'tokenizer'))"
        )
    sound = read_sound(request.source, "a source")
    seconds = len(sound) / SAMPLE_RATE
    if seconds > MAX_SECONDS:
        raise UserError(f"a source of {seconds:.0f} s; it may have {MAX_SECONDS:g}")
    if request.continues and request.seconds <= seconds:
        raise UserError(
            f"seconds is {request.seconds}, but the source has {seconds:.2f} already; ask for more"
        )
    if late := [end for _, end in request.regions if end > seconds + 1e-6]:
        raise UserError(f"a region ends at {late[0]} s; the source ends at {seconds:.2f} s")
    if request.continues:
        regions = [(len(sound), round(request.seconds * SAMPLE_RATE))]
    else:
        regions = _joined([(round(a * SAMPLE_RATE), round(b * SAMPLE_RATE)) for a, b in request.regions])
        regions = regions or [(0, len(sound))]
    window = configs["dpd"].frames // configs["dpd"].frames_per_token
    step = window // configs["dpd"].chunks
    snapped = _joined([(first // TOKEN_SAMPLES, -(-last // TOKEN_SAMPLES)) for first, last in regions])
    length = max(window, *(last for _, last in snapped), -(-len(sound) // TOKEN_SAMPLES))
    if request.continues:  # whole chunks; what is too much is cut
        first = snapped[0][0]
        length = max(window, first + -(-(length - first) // step) * step)
        snapped = [(first, length)]
    gain = _gain(sound)
    tokens, latents = _analyse(sound * gain, length, window, params, configs)
    return Piece(sound, gain, regions, tokens, latents, window, plan(snapped, length, window, step))


def gap(pieces: Sequence[Piece], keep_tokens: Sequence[bool], number: int) -> Gap:
    """Window `number` of every piece; all pieces have as many."""
    fills = [piece.fills[number] for piece in pieces]
    spans = [slice(fill.start, fill.start + piece.window) for piece, fill in zip(pieces, fills, strict=True)]
    unfilled = np.stack([_unfilled(piece, number)[span] for piece, span in zip(pieces, spans, strict=True)])
    tokens = np.stack([piece.semantic_tokens[span] for piece, span in zip(pieces, spans, strict=True)])
    latents = np.stack(
        [piece.latents[_times(span, piece.rate)] for piece, span in zip(pieces, spans, strict=True)]
    )
    new_tokens = unfilled & ~np.asarray(keep_tokens)[:, None]
    known = np.where(new_tokens.any(axis=1), new_tokens.argmax(axis=1), unfilled.shape[1] - 1).min()
    step = unfilled.shape[1] // GIVEN_STEPS
    closed = any(fill.closed and not kept for fill, kept in zip(fills, keep_tokens, strict=True))
    return Gap(
        window=Window(jnp.asarray(tokens), jnp.asarray(latents)),
        new_tokens=new_tokens,
        new_frames=np.repeat(unfilled, pieces[0].rate, axis=1),
        seconds=[fill.first * TOKEN_SAMPLES / SAMPLE_RATE for fill in fills],
        given=int(known) // step * step,
        draws=DRAWS if closed else 1,
    )


def fill(pieces: Sequence[Piece], number: int, window: Window) -> None:
    """Puts what is new in window `number` of every piece where it belongs."""
    for piece, tokens, latents in zip(pieces, *map(np.asarray, window), strict=True):
        start, first, last, _ = piece.fills[number]
        new, inside = slice(first, last), slice(first - start, last - start)
        piece.semantic_tokens[new] = tokens[inside]
        piece.latents[_times(new, piece.rate)] = latents[_times(inside, piece.rate)]


def _unfilled(piece: Piece, number: int) -> np.ndarray:
    """(n,) bool: the tokens that fills from `number` on will make."""
    unfilled = np.zeros(len(piece.semantic_tokens), bool)
    for later in piece.fills[number:]:
        unfilled[later.first : later.last] = True
    return unfilled


def _times(span: slice, rate: int) -> slice:
    return slice(span.start * rate, span.stop * rate)


def splice(piece: Piece, wave: np.ndarray) -> np.ndarray:
    """The source with the new sound `wave` (at least as long as all) where it is new, samples elsewhere to the bit.

    Both are at full power together in the middle of a fade: they have no phase in common.
    """
    total = max(len(piece.samples), piece.regions[-1][1])
    sound = np.zeros(total, np.float32)
    sound[: len(piece.samples)] = piece.samples
    for first, last in piece.regions:
        fade = min(round(FADE * SAMPLE_RATE), (last - first) // 2)
        rise = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
        kept, new = _beyond(piece.samples, first, last, fade), wave[first:last] / np.float32(piece.gain)
        weight = np.ones(last - first, np.float32)
        weight[:fade] = rise if first > 0 else 1
        if last < len(piece.samples):
            weight[len(weight) - fade :] = rise[::-1]
        sound[first:last] = audio.peak_limit(weight * new + np.sqrt(1 - weight**2) * kept)
    return sound


def _beyond(samples: np.ndarray, first: int, last: int, fade: int) -> np.ndarray:
    """The source from `first` to `last`, mirrored for a fade beyond its end."""
    mirrored = np.concatenate([samples, samples[: -fade - 1 : -1]])[first:last]
    return np.pad(mirrored, (0, last - first - len(mirrored)))


def _joined(regions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(regions):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def _gain(sound: np.ndarray) -> float:
    """What brings a sound to the level of the training music; 1 for silence."""
    level = np.abs(sound).max()
    return float(np.abs(audio.loudness_normalise(sound)).max() / level) if level > 0 else 1.0


@partial(jax.jit, static_argnames="configs")
def _features(
    params: dict[str, Params], configs: tuple[Any, Any], windows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Semantic tokens (N, U) and latents (N, L, D) of windows (N, T)."""

    def one(window: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = tokenizer.tokenize(params["tokenizer"], configs[0], window[None])
        return tokens[0], vae.encode(params["vae"], configs[1], window[None])[0]

    return jax.lax.map(one, windows)


def _analyse(
    sound: np.ndarray, length: int, window: int, params: dict[str, Params], configs: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Semantic tokens (length,) and latents of a sound (T,), zero beyond it.

    The sound goes on mirrored to the end of a window: the networks look ahead, and silence would be news to them.
    """
    heard = min(length, max(window, -(-len(sound) // TOKEN_SAMPLES)))
    padded = np.pad(sound, (0, heard * TOKEN_SAMPLES - len(sound)), mode="symmetric")
    at = starts(heard, window, window // 2)
    tokens, latents = [], []
    for start in at:
        cut = padded[None, start * TOKEN_SAMPLES : (start + window) * TOKEN_SAMPLES]
        made = _features(
            {name: params[name] for name in ("tokenizer", "vae")}, (configs["tokenizer"], configs["vae"]), cut
        )
        tokens.append(np.asarray(made[0][0]))
        latents.append(np.asarray(made[1][0]))
    rest = length - heard
    stitched = stitch(np.stack(latents), at, heard)
    frames = rest * configs["dpd"].frames_per_token
    return np.pad(stitch(np.stack(tokens), at, heard), (0, rest)), np.pad(stitched, ((0, frames), (0, 0)))
