"""What all systems share: the format of their clips, `generate`, the choice of the best candidate, and the controls."""

import dataclasses
import hashlib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from melody_jax import release, release_folder
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import InputWarning, UserError
from melody_jax.models.functional import Params
from melody_jax.sampling import plan
from melody_jax.sampling.edit import read_sources
from melody_jax.sampling.item_controls import Controls, make_controls
from melody_jax.sampling.passes import Evaluations
from melody_jax.sampling.progress import Progress
from melody_jax.sampling.prompts import EncodedRequest, PromptEncoder, UnknownWords
from melody_jax.sampling.request import PromptLike, Request, is_array, make_requests
from melody_jax.sampling.settings import shorten

Encoded = Mapping[Request, EncodedRequest]
"""The encoded prompts of requests."""
Rows = Sequence[tuple[Request, int]]
"""The rows of a batch: requests, each with the number of a candidate."""


class System(ABC):
    """Networks that make music."""

    params: dict[str, Params]
    configs: dict[str, Any]
    hashes: dict[str, str]
    """The hash of each network's weights."""

    @property
    def hash(self) -> str:
        """Hash of the weights of all networks but the tokenizer, which others name; 16 hexadecimal digits."""
        joined = "".join(self.hashes[network] for network in sorted(self.hashes) if network != "tokenizer")
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the clips: those of the autoencoder."""
        return plan.audio_format(self.configs)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the clips."""
        return self.audio_format.sample_rate

    @property
    def channels(self) -> int:
        """Channels of the clips: (samples,) if there is one, otherwise (samples, channels)."""
        return self.audio_format.channels

    @property
    @abstractmethod
    def window_seconds(self) -> float:
        """Seconds of one window, the longest stretch that the networks process at a time."""

    @property
    def chunk_seconds(self) -> float:
        """Seconds that each chunk adds after the first window; by default a window."""
        return self.window_seconds

    @property
    @abstractmethod
    def prompt_encoder(self) -> PromptEncoder:
        """MuLan with its tokenizer."""

    @abstractmethod
    def run(self, requests: Sequence[Request], *, progress: Progress = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in order."""

    @abstractmethod
    def check(self, request: Request, source_samples: int | None = None) -> None:
        """Raises `UserError` for a request that the system cannot make, without running a network.

        source_samples: the length of the request's source; None: not known yet.
        """

    def check_inputs(self, request: Request, source_samples: dict[Any, int] | None = None) -> None:
        """Raises `UserError` for a request that cannot be made, after reading its source, without running a network.

        source_samples: the lengths of sources that were read already; those that are read are added.
        """
        lengths = {} if source_samples is None else source_samples
        self.check(request)
        if request.source is not None:
            key = id(request.source) if is_array(request.source) else request.source
            if key not in lengths:
                (samples,) = read_sources([request], self.configs).values()
                lengths[key] = len(samples)
            self.check(request, lengths[key])
        self.check_prompts(request)

    @abstractmethod
    def program(self, request: Request) -> Hashable:
        """What requests without a source share if they are made in one batch. Raises `UserError` as `check`."""

    def count_passes(self, request: Request) -> Evaluations:
        """Passes through all generating networks for the clip of a request, without the second pass of guidance.

        By default raises `UserError`: a system need not count.
        """
        del request
        raise UserError(f"{type(self).__name__} does not count its passes")

    def replicate_over(self, mesh: Mesh) -> "System":
        """The system with its weights on every device of the mesh, over which batches divide.

        By default the system itself, whose batches run on one device.
        """
        del mesh
        return self

    def stream(
        self,
        prompt: PromptLike | None = None,
        *,
        seconds: float | None = None,
        progress: Progress = False,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """Yields music for one prompt while it is made, as `Melody.stream`.

        By default raises `UserError`: not every system can.
        """
        del prompt, seconds, progress, settings
        raise UserError(f"{type(self).__name__} makes whole clips only; it has no streams")

    def check_prompts(self, request: Request) -> None:
        """Raises `UserError` for prompts that cannot be encoded, without running a network."""
        self.prompt_encoder.check_request(request)

    def unknown_words(self, request: Request) -> list[UnknownWords]:
        """The texts of the request that have words which the vocabulary cannot spell."""
        return self.prompt_encoder.unknown_words(request.texts)

    def warn_of_unknown_words(self, requests: Sequence[Request]) -> None:
        """Warns once of each text of the requests that has words which the vocabulary cannot spell."""
        self.prompt_encoder.warn_of_unknown_words(requests)

    def unused_scenes(self, request: Request) -> list[str]:
        """A sentence on each scene of a clip without a source that no chunk follows. Raises `UserError` as `check`."""
        if not request.story or request.source is not None:
            return []
        self.check(request)
        window = self.window_seconds
        step = self.chunk_seconds
        later = math.ceil((request.seconds - window) / step - 1e-9)
        begins = [0.0, *(window + number * step for number in range(later))]
        starts = [scene.start for scene in request.story]
        unused = [
            start
            for start, end in zip(starts, [*starts[1:], math.inf], strict=True)
            if not any(start <= begin + 1e-9 < end for begin in begins)
        ]
        return [
            f"the scene at {start:g} s has no effect: no chunk begins between it and the next scene or the end; chunks "
            f"begin at 0 s, {window:g} s and every {step:g} s from there"
            for start in unused
        ]

    def warn_of_unused_scenes(self, requests: Sequence[Request]) -> None:
        """Warns once of each scene that no chunk follows."""
        messages = [message for request in requests for message in self.unused_scenes(request)]
        for message in dict.fromkeys(messages):
            warnings.warn(message, InputWarning, stacklevel=3)  # of the caller of `generate`

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike | None],
        *,
        progress: Progress = False,
        **settings: Any,
    ) -> list[np.ndarray]:
        """Generates music for each prompt: float32 (samples,), or (samples, channels), in [-1, 1] at `sample_rate`.

        prompts: one text, or a list. In a list, several `Part`s (texts and sounds with weights) make one
        prompt.
        settings: any field of `Request` by name, such as seconds=30 or guidance_scale=[1.5, 2.5]: one value
        for all prompts, or a list with one value per prompt. A single seed gives item i the seed + i. An item's
        clip depends on its own settings only.
        progress: whether to show a progress bar of the windows on a terminal, or a function that is called with the
        windows that are done and those of all clips (`progress.Progress`).
        Raises `UserError`, one line, for a value out of its range, and for a setting that the system does not have.
        Warns (`InputWarning`) of a prompt with words that the model does not know, and of a scene that no chunk
        follows.
        """
        requests = make_requests(prompts, {"seconds": Request.seconds} | settings)
        self.warn_of_unknown_words(requests)
        self.warn_of_unused_scenes(requests)
        return self.run(requests, progress=progress)

    def best_candidate(self, prompt: EncodedRequest, candidates: Sequence[np.ndarray]) -> np.ndarray:
        """The waveform closest to the prompt; a single one is not measured."""
        if len(candidates) == 1:
            return candidates[0]
        encoder = self.prompt_encoder
        return candidates[int(np.argmax([encoder.similarity(prompt, wave) for wave in candidates]))]


def controls_at(rows: Rows, encoded: Encoded, candidates: int) -> Callable[[Sequence[float]], Controls]:
    """A function of seconds from the beginning, one number per row, to the controls at that time.

    candidates: upper bound of `top_k`, as in `SamplerConfig`.
    """
    requests = [request for request, _ in rows]
    prompts = [encoded[request] for request in requests]

    def prefixes(seconds: Sequence[float]) -> np.ndarray:
        return np.stack([prompt.prefix_at(time) for prompt, time in zip(prompts, seconds, strict=True)])

    controls = make_controls(
        prefixes([0.0] * len(requests)),
        requests,
        np.stack([prompt.negative_prefix_tokens for prompt in prompts]),
        [number for _, number in rows],
        candidates,
    )
    return lambda seconds: controls._replace(prefix_tokens=jnp.asarray(prefixes(seconds)))


def check_streamed(request: Request) -> None:
    """Raises `UserError` for a request that cannot be made while it is heard."""
    if request.best_of > 1:
        raise UserError(f"best_of is {request.best_of}; a stream has one candidate, it must be 1")
    if request.source is not None:
        raise UserError("a source cannot be streamed; use generate")


def refuse_settings(request: Request, absent: Sequence[str], system: str) -> None:
    """Raises `UserError` for the first of the settings `absent` that is not its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    for name in absent:
        value = getattr(request, name)
        if is_array(value) or (value is not None and value != defaults[name]):
            raise UserError(f"{name} is {shorten(value)}: {system} has no such setting; leave it out")


def require_networks(name: str, folder: str | Path | None, networks: Sequence[str], system: str) -> None:
    """Raises `UserError` if the release `name` exists but lacks a network of the system."""
    path = release_folder.root(folder) / name
    if not path.is_dir():
        return
    missing = [network for network in networks if not release_folder.has_network(path, network)]
    if missing:
        raise UserError(
            f"{path} has no {missing[0]}, and {system} needs {', '.join(networks)}; train it as docs/systems.md says, "
            f"then `melody export --run RUN --out {path}`"
        )


def refuse_other_system(path: Path) -> None:
    """Raises `UserError` if a release is of another system than MeLoDy: by its own networks, or if they do not tell, by
    those of its bases."""
    signs = {"dpd": "melody", "upsampler": "noise2music", "dmae": "mousai", "coarse": "musiclm"}
    systems = [system for network, system in signs.items() if (path / f"{network}.json").exists()]
    systems = systems or [
        system for network, system in signs.items() if release_folder.has_network(path, network)
    ]
    kind = systems[0] if systems else "melody"
    if kind == "musiclm" and not _has_prefix(path):
        kind = "audiolm"
    if kind != "melody":
        raise UserError(
            f"{path} has no dpd but the networks of {kind}; load it with --system {kind}, in Python with "
            f"system={kind!r}"
        )


def _has_prefix(path: Path) -> bool:
    """Whether the coarse model of a release follows prefix tokens, as in MusicLM. Raises `UserError` for a bad file."""
    return release.read_description(path, "coarse")["config"].get("prefix_levels") != 0
