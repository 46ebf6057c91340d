"""The plan of a call: the compiled program of each clip, its windows, and their positions in the clip.

A plan is immutable and holds no arrays. It follows from the requests, the networks' configs and the lengths
of the sources. Requests that share a program form one batch. `cascade.py` runs the plan.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from melody_jax import diffusion
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.control_tokens import ControlVocabulary
from melody_jax.errors import UserError
from melody_jax.models.decoding import CANDIDATES
from melody_jax.runtime import available_memory
from melody_jax.sampling.request import Request, check_story
from melody_jax.sampling.settings import MAX_SECONDS, SamplingSettings, shorten
from melody_jax.sampling.windows import SamplerConfig

NETWORKS = ("mulan", "lm", "dpd", "vae")
"""Networks that sampling needs; a source needs the "tokenizer" as well."""

Configs = Mapping[str, Any]
"""Name of a network -> its config."""


class Fill(NamedTuple):
    """One window that regenerates part of an edited clip; all positions are semantic tokens of the clip."""

    start: int
    """Where the window begins."""
    first: int
    """The first new token."""
    last: int
    """The token after the last new one."""
    closed: bool
    """Whether source tokens follow the new ones in the window."""


@dataclass(frozen=True, kw_only=True)
class EditPlan:
    """What is regenerated of a source, and the windows that do it."""

    regions: tuple[tuple[int, int], ...]
    """(begin, end) of the new samples."""
    tokens: int
    """Length of the edited clip in semantic tokens, at least one window; the end may be padding."""
    window: int
    """Tokens per window, U."""
    fills: tuple[Fill, ...]
    """The windows in the order in which they are filled."""
    audio_format: AudioFormat = DEFAULT_FORMAT
    """Sample rate and channels of the source and the clip."""


@dataclass(frozen=True, kw_only=True)
class ProgramBatch:
    """Requests that one compiled program makes as one batch."""

    config: SamplerConfig
    """The settings that are compiled into the program."""
    windows: int
    """Windows per clip: the first window and its chunks, or the fills of an edit."""
    requests: tuple[Request, ...]
    """Each request has `best_of` rows in the batch."""
    edits: tuple[EditPlan, ...] = ()
    """The edit of each request; empty if there are no sources."""

    @property
    def rows(self) -> list[tuple[Request, int]]:
        """(request, candidate number) of each row of the batch."""
        return [(request, candidate) for request in self.requests for candidate in range(request.best_of)]


def plan_batches(
    requests: Sequence[Request], configs: Configs, source_samples: Mapping[Request, int]
) -> list[ProgramBatch]:
    """The requests grouped by program, in the order of the first request of each.

    source_samples: length of the source of each request that has one.

    Raises:
        UserError: a network is missing, or a request does not fit the networks or its source.
    """
    groups: dict[tuple[SamplerConfig, int, bool], list[tuple[Request, EditPlan | None]]] = {}
    for request in requests:
        config = sampler_config(request, configs)
        edit = None
        windows = 1 + chunk_count(request.seconds, configs)
        if request.source is not None:
            edit = plan_edit(request, source_samples[request], config, audio_format(configs))
            windows = len(edit.fills)
        groups.setdefault((config, windows, edit is not None), []).append((request, edit))
    return [
        ProgramBatch(
            config=config,
            windows=windows,
            requests=tuple(request for request, _ in members),
            edits=tuple(edit for _, edit in members if edit is not None),
        )
        for (config, windows, _), members in groups.items()
    ]


def check_memory(
    requests: Sequence[Request],
    wanted: AudioFormat,
    source_samples: Mapping[Request, int] | None = None,
) -> None:
    """Raises `UserError` if the samples of the clips, and of their candidates, exceed the memory that is free.

    wanted: sample rate and channels of the clips. source_samples: length of the source of each request that has one.
    """
    lengths = {} if source_samples is None else source_samples
    samples = sum(
        request.best_of * max(round(request.seconds * wanted.sample_rate), lengths.get(request, 0))
        for request in requests
    )
    needed = samples * wanted.channels * np.dtype(np.float32).itemsize
    available = available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"{len(requests)} clips at a time need {needed:,} bytes for their samples, {available:,} are free; make "
            "fewer at a time, or shorter ones"
        )


def sampler_config(request: Request, configs: Configs) -> SamplerConfig:
    """What has to be compiled for the request.

    Raises:
        UserError: a network was not loaded, a distilled diffusion does not support the guidance scale, or a control is
            not one of the networks'.
    """
    if missing := [network for network in NETWORKS if network not in configs]:
        raise UserError(f"{missing[0]} was not loaded; generating needs {', '.join(NETWORKS)}")
    if not configs["lm"].prompt_length:
        raise UserError("lm was trained without prefix tokens, so it follows no prompt; it is one of audiolm")
    _check_controls(request, control_vocabulary(configs))
    scale = request.guidance_scale
    distilled_range = configs["dpd"].guidance_range
    if distilled_range and not distilled_range[0] <= scale <= distilled_range[1]:
        low, high = distilled_range
        raise UserError(f"guidance_scale is {scale}; the distilled diffusion supports {low:g} to {high:g}")
    if distilled_range and request.guidance_rescale != SamplingSettings.guidance_rescale:
        raise UserError(
            f"guidance_rescale is {request.guidance_rescale}; it is no input of the distilled diffusion, leave it out"
        )
    return SamplerConfig(
        lm=configs["lm"],
        dpd=configs["dpd"],
        steps=int(request.steps),
        schedule=request.schedule,
        solver=request.solver,
        start=float(request.strength * diffusion.HALF_PI),
        guided=scale != 1 and not distilled_range,
        keeps_tokens=request.keep_tokens,
        lm_guided=request.lm_guidance_scale != 1,
        controlled=request.control_scale != 1
        and request.tells_key_or_metre
        and configs["lm"].controls is not None,
        candidates=candidates_for(request.top_k, configs["lm"].semantic_vocab),
    )


def candidates_for(top_k: int, ids: int) -> int:
    """Best ids that sampling looks at: `CANDIDATES`, or for a larger `top_k` all of them."""
    return CANDIDATES if top_k <= CANDIDATES else ids


def control_vocabulary(configs: Configs) -> ControlVocabulary | None:
    """The vocabulary of the control tokens that the networks take; None: they take none.

    Raises:
        UserError: the language model and the diffusion have different ones.
    """
    vocabularies = {configs[name].controls for name in ("lm", "dpd") if name in configs} - {None}
    if len(vocabularies) > 1:
        raise UserError("lm and dpd were trained with different control tokens; take both from one release")
    return next(iter(vocabularies), None)


def _check_controls(request: Request, vocabulary: ControlVocabulary | None) -> None:
    """Raises `UserError` for a melody, and for a tempo, key or metre that the networks do not know."""
    if request.melody is not None:
        raise UserError(
            f"melody is {shorten(request.melody)}; MeLoDy follows no melody, MusicLM does (--system musiclm)"
        )
    if request.controls and vocabulary is None:
        given = {
            "bpm": f"{request.bpm:g}" if request.bpm > 0 else "",
            "key": request.key,
            "metre": request.metre,
        }
        name, value = next((name, value) for name, value in given.items() if value)
        raise UserError(f"{name} is {value}; this model has no control tokens: say it in the prompt")
    if vocabulary is not None:
        vocabulary.check(request.controls)


def audio_format(configs: Configs) -> AudioFormat:
    """Sample rate and channels of the autoencoder, and so of the clips."""
    return configs["vae"].audio_format


def window_samples(configs: Configs) -> int:
    """Samples of one window, the longest stretch that the networks process at a time."""
    return configs["dpd"].frames * configs["vae"].hop


def chunk_count(seconds: float, configs: Configs) -> int:
    """Chunks after the first window that a clip of this length needs."""
    window_seconds = window_samples(configs) / audio_format(configs).sample_rate
    missing = seconds - window_seconds
    chunk_seconds = window_seconds / configs["dpd"].chunks
    return math.ceil(missing / chunk_seconds - 1e-9) if missing > 0 else 0


def plan_edit(
    request: Request, source_samples: int, config: SamplerConfig, audio_format: AudioFormat = DEFAULT_FORMAT
) -> EditPlan:
    """The regions and windows of an edit of a source of `source_samples` samples in this format.

    Raises:
        UserError: the source is too long, a region ends or a scene begins after it, or a continuation would not be
            longer than it.
    """
    rate = audio_format.sample_rate
    hop = audio_format.token_samples
    seconds = source_samples / rate
    check_source_length(request, source_samples, rate)
    if request.changes_source:
        check_story(request.story, seconds, "source")
    if late := [end for _, end in request.regions if end > seconds + 1e-6]:
        raise UserError(f"a region ends at {late[0]} s; the source ends at {seconds:.2f} s")
    if request.continues_source:
        regions = [(source_samples, round(request.seconds * rate))]
    else:
        samples = [(round(begin * rate), round(end * rate)) for begin, end in request.regions]
        regions = merge_regions(samples) or [(0, source_samples)]
    window = config.tokens
    step = window // config.dpd.chunks
    snapped = merge_regions([(begin // hop, -(-end // hop)) for begin, end in regions])
    length = max(window, *(end for _, end in snapped), -(-source_samples // hop))
    if request.continues_source:  # in steps of one chunk; the samples beyond the request are cut
        first = snapped[0][0]
        length = max(window, first + -(-(length - first) // step) * step)
        snapped = [(first, length)]
    fills = plan_fills(snapped, length, window, step)
    return EditPlan(
        regions=tuple(regions), tokens=length, window=window, fills=tuple(fills), audio_format=audio_format
    )


def check_source_length(request: Request, source_samples: int, sample_rate: int) -> None:
    """Raises `UserError` for a source that is too long, or that a clip would not continue."""
    seconds = source_samples / sample_rate
    if seconds > MAX_SECONDS:
        raise UserError(f"the source lasts {seconds:.0f} s; it must be at most {MAX_SECONDS:g} s long")
    if request.continues_source and round(request.seconds * sample_rate) <= source_samples:
        raise UserError(f"seconds is {request.seconds}; it must exceed the {seconds:.2f} s of the source")


def plan_fills(regions: list[tuple[int, int]], length: int, window: int, step: int) -> list[Fill]:
    """The windows that fill the `regions` (begin, end) of a clip of `length` tokens, from left to right.

    A region of up to half a window is filled at once, with source on both sides. A longer one is filled
    `step` tokens at a time, as in algorithm 2 of the paper.
    """
    fills: list[Fill] = []
    for begin, end in regions:
        first = begin
        while first < end:
            closed = end < length and end - first <= window // 2
            before = (window - (end - first)) // 2 if closed else window - step
            start = min(max(first - before, 0), max(length - window, 0))
            last = min(end, start + window)
            if not closed and start > 0:
                last = min(last, first + step)
            fills.append(Fill(start, first, last, last == end < min(length, start + window)))
            first = last
    return fills


def merge_regions(regions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The regions in order; those that touch or overlap become one."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(regions):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged
