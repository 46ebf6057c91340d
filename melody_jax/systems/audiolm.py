"""AudioLM (arXiv 2209.03143): music without a prompt, and the continuation of a recording.

    recording --tokenizer, codec--> semantic tokens and codes, which the language models of `token_cascade.py` continue

A release holds the networks `tokenizer`, `lm` and `coarse` (both without a prefix), `fine` and `vae`, an autoencoder
with a quantiser. The samples of a recording stay bit-identical, as in the edits of MeLoDy (`sampling/edit.py`).

S semantic tokens, L frames, V levels.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from melody_jax.errors import UserError
from melody_jax.models import tokenizer, vae
from melody_jax.models.channels import default_format
from melody_jax.models.functional import Params
from melody_jax.sampling import edit, plan
from melody_jax.sampling.cascade import load_networks
from melody_jax.sampling.item_controls import make_controls
from melody_jax.sampling.precision import in_32_bits
from melody_jax.sampling.progress import Progress
from melody_jax.sampling.prompts import PromptEncoder, UnknownWords
from melody_jax.sampling.request import Request
from melody_jax.sampling.system import refuse_settings, require_networks
from melody_jax.systems.token_cascade import Beginning, ControlsAt, TokenCascade, Written
from melody_jax.systems.token_networks import require_equal
from melody_jax.systems.token_writing import Writing

NETWORKS = ("tokenizer", "lm", "coarse", "fine", "vae")
"""Networks of the system."""
ABSENT = (
    "prompt",
    "story",
    "negative_prompt",
    "lm_guidance_scale",
    "control_scale",
    "best_of",
    "steps",
    "schedule",
    "solver",
    "guidance_scale",
    "guidance_rescale",
    "strength",
    "keep_tokens",
    "regions",
    "melody",
    "bpm",
    "key",
    "metre",
)
"""Settings that AudioLM does not have: it hears no prompt, and has no diffusion."""


class AudioLM(TokenCascade):
    """A loaded AudioLM: `sample_rate` in Hz, `channels`, `window_seconds`, `params`, `configs`.

    Raises `UserError` if the networks do not belong together.
    """

    temperatures = (0.6, 0.8, 0.6)
    """As published (arXiv 2209.03143)."""

    def __init__(self, params: dict[str, Params], configs: dict[str, Any], hashes: dict[str, str]) -> None:
        super().__init__(params, configs, hashes)
        for network in ("lm", "coarse"):
            if configs[network].prompt_length:
                raise UserError(
                    f"{network} follows {configs[network].prompt_length} prefix tokens; AudioLM has none: load the "
                    "release with --system musiclm"
                )
        ids = configs["tokenizer"].semantic_vocab, configs["lm"].semantic_vocab
        require_equal({"semantic ids of tokenizer and lm": ids})

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Raises `UserError`: there is none."""
        raise UserError("audiolm has no prompts")

    def check_prompts(self, request: Request) -> None:
        """Does nothing: `check` refuses prompts."""

    def unknown_words(self, request: Request) -> list[UnknownWords]:
        """None: there are no words."""
        del request
        return []

    def warn_of_unknown_words(self, requests: Sequence[Request]) -> None:
        """Does nothing: there are no words."""

    def check(self, request: Request, source_samples: int | None = None) -> None:
        """Raises `UserError` for a setting that AudioLM does not have, and a clip that is no longer than its source."""
        refuse_settings(request, ABSENT, "audiolm")
        plan.check_source_length(request, source_samples or 0, self.sample_rate)

    def generate(
        self, prompts: Sequence[Any] = (None,), *, progress: Progress = False, **settings: Any
    ) -> list[np.ndarray]:
        """Makes a clip for each None: float32 (samples,), or (samples, channels), in [-1, 1] at `sample_rate`.

        settings: any field of `Request` by name, such as seconds=30 or source="recording.wav", which is continued up
        to `seconds`. Otherwise as `System.generate`.
        """
        return super().generate(prompts, progress=progress, **settings)

    @in_32_bits
    def run(self, requests: Sequence[Request], *, progress: Progress = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in order; those without a source that share a program are one batch.

        Raises `UserError` for a setting that AudioLM does not have, and for a source that cannot be read, or is not
        shorter than its clip.
        """
        for request in requests:
            self.check(request)
        sources = edit.read_sources(requests, self.configs)
        for request, samples in sources.items():
            self.check(request, len(samples))
        plan.check_memory(
            requests, self.audio_format, {request: len(sound) for request, sound in sources.items()}
        )
        groups: dict[tuple[int, Writing], list[int]] = {}
        clips: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        for i, request in enumerate(requests):
            if request in sources:
                clips[i] = self._continued(request, sources[request], progress)
            else:
                groups.setdefault(self.program(request), []).append(i)
        for (count, writing), members in groups.items():
            batch = [requests[i] for i in members]
            codes = self.write(_controls_at(batch, writing), count, writing, progress=progress).codes
            for i, clip in zip(members, self.clips(batch, codes), strict=True):
                clips[i] = clip
        return clips

    def stream_parts(self, request: Request, count: int | None, writing: Writing) -> Iterator[Written]:
        """The codes of one request as they are written."""
        return self.parts(_controls_at([request], writing), count, writing)

    def _continued(
        self, request: Request, samples: Float32[np.ndarray, " T *C"], progress: Progress
    ) -> np.ndarray:
        """The source and its continuation. The models read the end of its last window, the decoder all of it."""
        _, writing = self.program(request)
        gain = edit.level_gain(samples, self.sample_rate)
        tokens = len(samples) // self.audio_format.token_samples
        begun = min(tokens, self.window_tokens)
        beginning = self._encode(samples * gain, tokens - begun, begun)
        seconds = request.seconds - (tokens - begun) * self.audio_format.token_samples / self.sample_rate
        count = self.window_count(seconds, begun)
        (wave,) = self.waves(
            self.write(_controls_at([request], writing), count, writing, beginning, progress=progress).codes
        )
        before = (tokens - begun) * self.audio_format.token_samples
        wave = np.pad(wave, ((before, 0), *[(0, 0)] * (wave.ndim - 1)))
        region = len(samples), round(request.seconds * self.sample_rate)
        return edit.splice(samples, [region], wave / np.float32(gain), self.sample_rate)

    def _encode(self, sound: np.ndarray, first: int, count: int) -> Beginning:
        """Semantic tokens and codes of the `count` tokens from `first` on, in a window that is mirrored to its end."""
        hop = self.audio_format.token_samples
        window = sound[first * hop : (first + count) * hop]
        missing = (0, (self.window_tokens - count) * hop)
        window = np.pad(window, (missing, *[(0, 0)] * (sound.ndim - 1)), mode="symmetric")
        networks = {name: self.params[name] for name in ("tokenizer", "vae")}
        configs = (self.configs["tokenizer"], self.configs["vae"])
        semantic, codes = _encode_window(networks, configs, jnp.asarray(window))
        levels = self.configs["coarse"].code_levels + self.configs["fine"].code_levels
        return Beginning(semantic[:, :count], codes[:, : count * self.frames_per_token, :levels])


@partial(jax.jit, static_argnames="configs")
def _encode_window(
    params: dict[str, Params], configs: tuple[Any, Any], window: Array
) -> tuple[jax.Array, jax.Array]:
    """Semantic tokens (1, S) and codes (1, L, V) of a window of audio (T,) or (T, C)."""
    mono = default_format(window[None], configs[1].audio_format)
    semantic = tokenizer.tokenize(params["tokenizer"], configs[0], mono)
    return semantic, vae.codes(params["vae"], configs[1], window[None])


def _controls_at(requests: Sequence[Request], writing: Writing) -> ControlsAt:
    """The controls of clips without a prefix, the same at any time."""
    nothing = jnp.zeros((len(requests), 0), jnp.int32)
    controls = make_controls(nothing, requests, candidates=writing.candidates)
    return lambda _: controls


@in_32_bits
def load(name: str, *, folder: str | Path | None = None) -> AudioLM:
    """The AudioLM released as `name`, from the package or from `folder/name`; nothing is downloaded.

    Raises `UserError` if there is no such release, a network is missing (the message says how to train it) or damaged,
    or they do not belong together.
    """
    require_networks(name, folder, NETWORKS, "audiolm")
    params, configs, hashes, _ = load_networks(name, folder, NETWORKS)
    return AudioLM(params, configs, hashes)
