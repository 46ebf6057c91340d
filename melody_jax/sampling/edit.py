"""Edits of the user's own music: continuing it, regenerating parts of it, or varying it.

The clip is represented by semantic tokens and latents. New ones are generated window by window from left to
right. A gap of up to half a window has source on both sides; a longer one is filled chunk by chunk (MeLoDy, arXiv
2305.15719, algorithm 2). Samples outside the regenerated regions are bit-identical to the source; a crossfade
of `FADE` seconds lies inside each.

B batch, U tokens of a window, L latents of a window, n tokens of a clip, D latent channels, T samples.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from melody_jax import audio
from melody_jax.audio import SAMPLE_RATE, TOKEN_SAMPLES
from melody_jax.sampling.plan import EditPlan
from melody_jax.sampling.windows import Window

FADE = 0.02
"""Length of every crossfade, seconds."""
CONTEXT_STEPS = 8
"""The leading source tokens of a window are passed to the language model in multiples of 1/8 of the window,
so that few programs are compiled."""
FILLINGS = 8
"""Number of fillings that the language model writes for a gap with source tokens after it; the likeliest is used."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EditedClip:
    """A source and the state of its edit: tokens and latents, including those of the windows filled so far."""

    plan: EditPlan
    """What is regenerated, in which windows."""
    samples: Float[np.ndarray, " T"]
    """The source at its own level."""
    gain: float
    """The factor that brings the source to the level of the training music."""
    semantic_tokens: Int[np.ndarray, " n"]
    """Tokens of the clip, from the source or new; 0 where a continuation is not filled yet."""
    latents: Float[np.ndarray, "frames D"]
    """Latents of the clip, `rate` per token."""

    @property
    def rate(self) -> int:
        """Latents per token."""
        return len(self.latents) // len(self.semantic_tokens)

    def window_at(self, number: int) -> tuple[Int[np.ndarray, " U"], Float[np.ndarray, "L D"]]:
        """Tokens (U,) and latents (L, D) of window `number` of the plan."""
        start = self.plan.fills[number].start
        tokens = slice(start, start + self.plan.window)
        return self.semantic_tokens[tokens], self.latents[_latent_span(tokens, self.rate)]

    def unfilled(self, number: int) -> Bool[np.ndarray, " U"]:
        """Which tokens of window `number` are still to be filled, by this window or a later one."""
        mask = np.zeros(len(self.semantic_tokens), bool)
        for fill in self.plan.fills[number:]:
            mask[fill.first : fill.last] = True
        start = self.plan.fills[number].start
        return mask[start : start + self.plan.window]

    def with_window(
        self, number: int, window_tokens: Int[np.ndarray, " U"], window_latents: Float[np.ndarray, "L D"]
    ) -> "EditedClip":
        """A copy in which the new part of window `number` is filled."""
        fill = self.plan.fills[number]
        in_clip = slice(fill.first, fill.last)
        in_window = slice(fill.first - fill.start, fill.last - fill.start)
        tokens = self.semantic_tokens.copy()
        tokens[in_clip] = window_tokens[in_window]
        latents = self.latents.copy()
        latents[_latent_span(in_clip, self.rate)] = window_latents[_latent_span(in_window, self.rate)]
        return dataclasses.replace(self, semantic_tokens=tokens, latents=latents)


class WindowInputs(NamedTuple):
    """The inputs of `fill_tokens` and `fill_latents` (windows.py) for one window of every clip of a batch."""

    window: Window
    """Tokens (B, U) and latents (B, L, D) so far."""
    new_tokens: Bool[np.ndarray, "B U"]
    """The tokens that the language model writes."""
    new_frames: Bool[np.ndarray, "B L"]
    """The latents that the diffusion makes."""
    seconds: list[float]
    """Position in the clip at which each row's new part begins."""
    context_tokens: int
    """Leading tokens of the window that stay in every row."""
    fillings: int
    """Fillings that the language model writes to choose from."""


def window_inputs(clips: Sequence[EditedClip], keep_tokens: Sequence[bool], number: int) -> WindowInputs:
    """Window `number` of every clip; all plans have the same number of windows.

    keep_tokens: for each clip, whether the source's tokens stay, so that only latents are new.
    """
    fills = [clip.plan.fills[number] for clip in clips]
    current = [clip.window_at(number) for clip in clips]
    unfilled = np.stack([clip.unfilled(number) for clip in clips])
    new_tokens = unfilled & ~np.asarray(keep_tokens)[:, None]
    window = unfilled.shape[1]
    context = np.where(new_tokens.any(axis=1), new_tokens.argmax(axis=1), window - 1).min()
    step = window // CONTEXT_STEPS
    chooses = any(fill.closed and not keep for fill, keep in zip(fills, keep_tokens, strict=True))
    return WindowInputs(
        window=Window(
            jnp.asarray(np.stack([tokens for tokens, _ in current])),
            jnp.asarray(np.stack([latents for _, latents in current])),
        ),
        new_tokens=new_tokens,
        new_frames=np.repeat(unfilled, clips[0].rate, axis=1),
        seconds=[fill.first * TOKEN_SAMPLES / SAMPLE_RATE for fill in fills],
        context_tokens=int(context) // step * step,
        fillings=FILLINGS if chooses else 1,
    )


def insert_windows(clips: Sequence[EditedClip], number: int, window: Window) -> list[EditedClip]:
    """The clips with window `number` filled from tokens (B, U) and latents (B, L, D)."""
    tokens = np.asarray(window.semantic_tokens)
    latents = np.asarray(window.latents)
    return [clip.with_window(number, tokens[i], latents[i]) for i, clip in enumerate(clips)]


def _latent_span(tokens: slice, rate: int) -> slice:
    return slice(tokens.start * rate, tokens.stop * rate)


def splice(clip: EditedClip, wave: Float[np.ndarray, " decoded"]) -> Float[np.ndarray, " T"]:
    """The source with the decoded clip `wave` in its new regions; all other samples are bit-identical.

    wave: at least as long as the clip. The crossfades have constant power, because the two sounds are not in
    phase.
    """
    samples = clip.samples
    regions = clip.plan.regions
    spliced = np.zeros(max(len(samples), regions[-1][1]), np.float32)
    spliced[: len(samples)] = samples
    for begin, end in regions:
        fade = min(round(FADE * SAMPLE_RATE), (end - begin) // 2)
        rise = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
        weight = np.ones(end - begin, np.float32)
        weight[:fade] = rise if begin > 0 else 1
        if end < len(samples):
            weight[len(weight) - fade :] = rise[::-1]
        source = _mirrored(samples, begin, end, fade)
        new = wave[begin:end] / np.float32(clip.gain)
        spliced[begin:end] = audio.peak_limit(weight * new + np.sqrt(1 - weight**2) * source)
    return spliced


def _mirrored(samples: np.ndarray, begin: int, end: int, fade: int) -> np.ndarray:
    """The source from `begin` to `end`, mirrored for `fade` samples beyond its end and zero after them."""
    mirrored = np.concatenate([samples, samples[: -fade - 1 : -1]])[begin:end]
    return np.pad(mirrored, (0, end - begin - len(mirrored)))
