"""MusicLM (arXiv 2301.11325): AudioLM's language models under the prefix tokens of a prompt.

    prompt --MuLan--> prefix tokens --lm--> semantic tokens, and so on as in `token_cascade.py`

A release holds the networks `mulan`, `lm`, `coarse`, `fine` and `vae`, an autoencoder with a quantiser.
"""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from tokenizers import Tokenizer

from melody_jax import audio
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.errors import UserError
from melody_jax.melody_tokens import NONE, melody_tokens
from melody_jax.models.functional import Params
from melody_jax.sampling import plan
from melody_jax.sampling.cascade import load_networks
from melody_jax.sampling.precision import in_32_bits
from melody_jax.sampling.progress import Progress
from melody_jax.sampling.prompts import PromptEncoder, read_audio
from melody_jax.sampling.request import Request
from melody_jax.sampling.settings import shorten
from melody_jax.sampling.system import Encoded, Rows, controls_at, refuse_settings, require_networks
from melody_jax.systems.token_cascade import ControlsAt, TokenCascade, Written
from melody_jax.systems.token_networks import require_equal
from melody_jax.systems.token_writing import Writing

NETWORKS = ("mulan", "lm", "coarse", "fine", "vae")
"""Networks of the system."""
ABSENT = (
    "steps",
    "schedule",
    "solver",
    "guidance_scale",
    "guidance_rescale",
    "strength",
    "keep_tokens",
    "source",
    "control_scale",
    "bpm",
    "key",
    "metre",
)
"""Settings that MusicLM does not have: they belong to a diffusion, or need networks that it lacks."""


class MusicLM(TokenCascade):
    """A loaded MusicLM: `sample_rate` in Hz, `channels`, `window_seconds`, `params`, `configs`.

    Raises `UserError` if the networks do not belong together.
    """

    temperatures = (1.0, 0.95, 0.4)
    """As published (arXiv 2301.11325)."""

    def __init__(
        self,
        params: dict[str, Params],
        configs: dict[str, Any],
        hashes: dict[str, str],
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__(params, configs, hashes)
        self.tokenizer = tokenizer
        mulan = configs["mulan"]
        for name in ("lm", "coarse"):
            network = configs[name]
            require_equal(
                {
                    f"prefix levels of {name} and mulan": (network.prefix_levels, mulan.levels),
                    f"prefix codes of {name} and mulan": (network.prefix_codes, mulan.codes),
                }
            )

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """MuLan with its tokenizer."""
        samples = self.window_tokens * self.audio_format.token_samples
        config = self.configs["mulan"]
        return PromptEncoder(
            self.params["mulan"], config, self.tokenizer, samples, audio_format=self.audio_format
        )

    def check(self, request: Request, source_samples: int | None = None) -> None:
        """Raises `UserError` for a setting that MusicLM does not have."""
        del source_samples
        refuse_settings(request, ABSENT, "musiclm")
        if request.melody is not None and not self.configs["lm"].melody_span:
            raise UserError(
                f"melody is {shorten(request.melody)}; the language model of this release follows no melody, train one "
                "with model.melody_span as docs/systems.md says"
            )

    def check_prompts(self, request: Request) -> None:
        """Raises `UserError` for prompts and melodies that cannot be encoded, without running a network."""
        super().check_prompts(request)
        self.tune(request)

    def tune(self, request: Request) -> Int32[np.ndarray, " N"]:
        """The melody tokens of a request; a file is read once for all requests, unless it changes.

        Raises `UserError` for a melody that is unreadable, shorter than a second or longer than `MAX_SECONDS`.
        """
        melody = request.melody
        if melody is None:
            return np.zeros(0, np.int32)
        if isinstance(melody, str | Path):
            return _tune_of_file(str(melody), _version(str(melody)), self.audio_format)
        return _tune(melody, self.audio_format)

    def melodies(self, rows: Rows) -> Int32[np.ndarray, "B M"]:
        """The melody tokens of the rows, requests with candidate numbers; -1 after the end of each."""
        tunes = {request: self.tune(request) for request in dict.fromkeys(request for request, _ in rows)}
        longest = max(map(len, tunes.values()))
        padded = {
            request: np.pad(tune, (0, longest - len(tune)), constant_values=NONE)
            for request, tune in tunes.items()
        }
        return np.stack([padded[request] for request, _ in rows])

    @in_32_bits
    def run(self, requests: Sequence[Request], *, progress: Progress = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in order; those that share a program are one batch.

        Raises `UserError` for a setting that MusicLM does not have.
        """
        groups: dict[tuple[int, Writing], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self.program(request), []).append(i)
            self.check_prompts(request)
        plan.check_memory(requests, self.audio_format)
        encoded = self.prompt_encoder.encode_requests(requests)
        clips: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        for (count, writing), members in groups.items():
            rows = [(requests[i], number) for i in members for number in range(requests[i].best_of)]
            codes = self.codes(rows, encoded, count, writing, progress).codes
            waves = iter(self.clips([request for request, _ in rows], codes))
            for i in members:
                clips[i] = self.best_candidate(encoded[requests[i]], list(islice(waves, requests[i].best_of)))
        return clips

    def codes(
        self, rows: Rows, encoded: Encoded, count: int, writing: Writing, progress: Progress = False
    ) -> Written:
        """The codes of clips of `count` semantic windows; rows are requests with candidate numbers."""
        controls = _controls_at(rows, encoded, writing)
        return self.write(controls, count, writing, melody=self.melodies(rows), progress=progress)

    def stream_parts(self, request: Request, count: int | None, writing: Writing) -> Iterator[Written]:
        """The codes of one request as they are written."""
        rows = [(request, 0)]
        controls = _controls_at(rows, self.prompt_encoder.encode_requests([request]), writing)
        return self.parts(controls, count, writing, melody=self.melodies(rows))


def _tune(melody: Any, audio_format: AudioFormat) -> Int32[np.ndarray, " N"]:
    """The melody tokens of a file, or of samples in this format. Raises `UserError` as `read_audio`."""
    wave = read_audio(melody, "melody", audio_format)
    return melody_tokens(audio.convert(wave, audio_format, DEFAULT_FORMAT))


@lru_cache(maxsize=1024)
def _tune_of_file(
    path: str, version: tuple[int, int] | None, audio_format: AudioFormat
) -> Int32[np.ndarray, " N"]:
    """The melody tokens of a file in this version of it. Raises `UserError` as `read_audio`."""
    del version
    return _tune(path, audio_format)


def _version(path: str) -> tuple[int, int] | None:
    """What changes with the content of a file: its size and the time of its last change. None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _controls_at(rows: Rows, encoded: Encoded, writing: Writing) -> ControlsAt:
    """The controls of requests with candidate numbers, over time."""
    controls = controls_at(rows, encoded, writing.candidates)
    return lambda seconds: controls([seconds] * len(rows))


@in_32_bits
def load(name: str, *, folder: str | Path | None = None) -> MusicLM:
    """The MusicLM released as `name`, from the package or from `folder/name`; nothing is downloaded.

    Raises `UserError` if there is no such release, a network is missing (the message says how to train it) or damaged,
    or they do not belong together.
    """
    require_networks(name, folder, NETWORKS, "musiclm")
    params, configs, hashes, tokenizer = load_networks(name, folder, NETWORKS)
    assert tokenizer is not None
    return MusicLM(params, configs, hashes, tokenizer)
