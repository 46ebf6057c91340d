"""Edits of the user's own music: continuing it, regenerating parts of it, or varying it.

The source is encoded into semantic tokens and latents. New ones are generated window by window from left to right.
A gap of up to half a window has source on both sides; a longer one is filled chunk by chunk (MeLoDy, arXiv 2305.15719,
algorithm 2). Samples outside the regenerated regions are bit-identical to the source; a crossfade of `FADE` seconds
lies inside each.

B batch, U tokens of a window, L latents of a window, n tokens of a clip, D latent channels, N windows, T samples.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from melody_jax import audio, loudness
from melody_jax.audio_format import DEFAULT_FORMAT, TOKEN_RATE
from melody_jax.data.features import stitch_windows, window_starts
from melody_jax.errors import UserError
from melody_jax.models import tokenizer, vae
from melody_jax.models.channels import default_format
from melody_jax.models.functional import Params
from melody_jax.sampling import edges, windows
from melody_jax.sampling.item_controls import Controls
from melody_jax.sampling.plan import Configs, EditPlan, ProgramBatch, audio_format
from melody_jax.sampling.prompts import read_audio
from melody_jax.sampling.request import Request
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
    samples: Float[np.ndarray, " T *C"]
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


def read_sources(requests: Sequence[Request], configs: Configs) -> dict[Request, np.ndarray]:
    """The source of each request that has one, in the autoencoder's format.

    Raises:
        UserError: a source cannot be read, or no tokenizer was loaded.
    """
    with_source = [request for request in requests if request.source is not None]
    if with_source and "tokenizer" not in configs:
        raise UserError(
            "the tokenizer was not loaded; a source needs it: load(..., networks=(..., 'tokenizer'))"
        )
    wanted = audio_format(configs) if with_source else DEFAULT_FORMAT
    return {request: read_audio(request.source, "a source", wanted) for request in with_source}


def analyse_source(
    samples: Float32[np.ndarray, " T *C"], plan: EditPlan, params: dict[str, Params], configs: Configs
) -> EditedClip:
    """The clip before its first window is filled: the source's tokens and latents, zero beyond the source.

    The networks process the source at the level of their training music. It is mirrored to the end of its
    last window, because the networks look ahead and would encode silence there as part of the music.
    """
    gain = level_gain(samples, plan.audio_format.sample_rate)
    sound = samples * gain
    hop = plan.audio_format.token_samples
    encoded_tokens = min(plan.tokens, max(plan.window, -(-len(sound) // hop)))
    missing_samples = (0, encoded_tokens * hop - len(sound))
    padded = np.pad(sound, (missing_samples, *[(0, 0)] * (sound.ndim - 1)), mode="symmetric")
    starts = window_starts(encoded_tokens, plan.window, plan.window // 2)
    network_params = {name: params[name] for name in ("tokenizer", "vae")}
    network_configs = (configs["tokenizer"], configs["vae"])
    tokens = []
    latents = []
    for start in starts:
        window = padded[None, start * hop : (start + plan.window) * hop]
        window_tokens, window_latents = encode_windows(network_params, network_configs, window)
        tokens.append(np.asarray(window_tokens[0]))
        latents.append(np.asarray(window_latents[0]))
    missing = plan.tokens - encoded_tokens
    missing_latents = missing * configs["dpd"].frames_per_token
    stitched_tokens = stitch_windows(np.stack(tokens), starts, encoded_tokens)
    stitched_latents = stitch_windows(np.stack(latents), starts, encoded_tokens)
    return EditedClip(
        plan=plan,
        samples=samples,
        gain=gain,
        semantic_tokens=np.pad(stitched_tokens, (0, missing)),
        latents=np.pad(stitched_latents, ((0, missing_latents), (0, 0))),
    )


def level_gain(samples: Float32[np.ndarray, " T *C"], sample_rate: int) -> float:
    """The factor that brings audio to the level of the training music; 1 for silence."""
    peak = np.abs(samples).max()
    if peak == 0:
        return 1.0
    return float(np.abs(loudness.normalise(samples, sample_rate=sample_rate)).max() / peak)


@partial(jax.jit, static_argnames="configs")
def encode_windows(
    params: dict[str, Params], configs: tuple[Any, Any], windows: Float[Array | np.ndarray, " N T *C"]
) -> tuple[Int[Array, "N U"], Float[Array, "N L D"]]:
    """Semantic tokens and latents of windows of audio, by the `configs` of tokenizer and VAE."""

    def encode(window: jax.Array) -> tuple[jax.Array, jax.Array]:
        mono = default_format(window[None], configs[1].audio_format)
        tokens = tokenizer.tokenize(params["tokenizer"], configs[0], mono)
        return tokens[0], vae.encode(params["vae"], configs[1], window[None])[0]

    return jax.lax.map(encode, windows)


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
        seconds=[fill.first / TOKEN_RATE for fill in fills],
        context_tokens=int(context) // step * step,
        fillings=FILLINGS if chooses else 1,
    )


def fill_windows(
    params: dict[str, Params],
    batch: ProgramBatch,
    clips: list[EditedClip],
    controls_at: Callable[[Sequence[float]], Controls],
    numbers: Iterable[int],
) -> list[EditedClip]:
    """The clips of the rows of a batch, with the windows `numbers` of their plans filled, in that order.

    controls_at: seconds from the beginning, one number per row, to the controls at that time.
    """
    keep_tokens = [request.keep_tokens for request, _ in batch.rows]
    for number in numbers:
        inputs = window_inputs(clips, keep_tokens, number)
        controls = controls_at(inputs.seconds)
        window = inputs.window
        index = jnp.int32(number)
        if inputs.new_tokens.any():
            tokens = windows.fill_tokens(
                params["lm"],
                batch.config,
                controls,
                window.semantic_tokens,
                inputs.new_tokens,
                index,
                inputs.context_tokens,
                inputs.fillings,
            )
            window = window._replace(semantic_tokens=tokens)
        latents = windows.fill_latents(
            params["dpd"], batch.config, controls, window, inputs.new_frames, index
        )
        clips = insert_windows(clips, number, window._replace(latents=latents))
    return clips


def insert_windows(clips: Sequence[EditedClip], number: int, window: Window) -> list[EditedClip]:
    """The clips with window `number` filled from tokens (B, U) and latents (B, L, D)."""
    tokens = np.asarray(window.semantic_tokens)
    latents = np.asarray(window.latents)
    return [clip.with_window(number, tokens[i], latents[i]) for i, clip in enumerate(clips)]


def _latent_span(tokens: slice, rate: int) -> slice:
    return slice(tokens.start * rate, tokens.stop * rate)


def splice(
    samples: Float[np.ndarray, " T *C"],
    regions: Sequence[tuple[int, int]],
    wave: Float[np.ndarray, " decoded *C"],
    sample_rate: int,
) -> Float[np.ndarray, " longer *C"]:
    """A source with the decoded clip `wave` in its new regions (begin, end); all other samples are bit-identical.

    wave: at the source's level, at least as long as the clip. The crossfades have constant power, because the two
    sounds are not in phase. Where a region begins or ends the clip, it is faded (`edges.py`).
    """
    spliced = np.zeros((max(len(samples), regions[-1][1]), *samples.shape[1:]), np.float32)
    spliced[: len(samples)] = samples
    for begin, end in regions:
        fade = min(round(FADE * sample_rate), (end - begin) // 2)
        rise = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
        weight = np.ones(end - begin, np.float32)
        weight[:fade] = rise if begin > 0 else 1
        if end < len(samples):
            weight[len(weight) - fade :] = rise[::-1]
        source = _mirrored(samples, begin, end, fade)
        weight = audio.per_sample(weight, samples)
        mixed = weight * wave[begin:end] + np.sqrt(1 - weight**2) * source
        spliced[begin:end] = loudness.peak_limit(mixed, sample_rate=sample_rate)
        if begin == 0:
            edges.fade_in(spliced[:end], sample_rate)
        if end == len(spliced):
            edges.fade_out(spliced[begin:], sample_rate)
    return spliced


def _mirrored(samples: np.ndarray, begin: int, end: int, fade: int) -> np.ndarray:
    """The source from `begin` to `end`, mirrored for `fade` samples beyond its end and zero after them."""
    mirrored = np.concatenate([samples, samples[: -fade - 1 : -1]])[begin:end]
    missing = (0, end - begin - len(mirrored))
    return np.pad(mirrored, (missing, *[(0, 0)] * (samples.ndim - 1)))
