"""What systems without a language model share: diffusions that follow the words of one text, for one window.

B batch, L frames, D channels.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key
from tokenizers import Tokenizer

from melody_jax import diffusion, guidance
from melody_jax.errors import UserError
from melody_jax.models import denoiser
from melody_jax.models.conditioning import LowerFrames, WordPieces
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.functional import Params
from melody_jax.sampling import edges, plan
from melody_jax.sampling.item_controls import Controls, fold_in, make_controls, normal
from melody_jax.sampling.passes import Evaluations
from melody_jax.sampling.precision import in_32_bits
from melody_jax.sampling.progress import Progress
from melody_jax.sampling.prompts import PromptEncoder, tokenize_prompt
from melody_jax.sampling.request import LANGUAGE_MODEL_SETTINGS, Request
from melody_jax.sampling.system import Rows, System, refuse_settings

ABSENT = (
    "story",
    *LANGUAGE_MODEL_SETTINGS,
    "strength",
    "keep_tokens",
    "source",
    "regions",
    "melody",
    "bpm",
    "key",
    "metre",
)
"""Settings that these systems do not have: they belong to a language model, or to the continuation of music."""


MULAN_SECONDS = 10
"""Longest window that MuLan hears at once, of the candidates of `best_of`: it was trained on 5 to 10 s."""


class Program(NamedTuple):
    """Settings that are compiled into the program of a batch."""

    steps: int
    schedule: str
    solver: str
    guided: bool


class TextDiffusion(System):
    """Networks that make clips of one window from words. Raises `UserError` if they do not belong together."""

    system: str
    """The system's name."""
    diffusions: int
    """Diffusions that a clip takes."""

    def __init__(
        self, params: dict[str, Params], configs: dict[str, Any], hashes: dict[str, str], tokenizer: Tokenizer
    ) -> None:
        self.params = params
        self.configs = configs
        self.hashes = hashes
        self.tokenizer = tokenizer
        self.check_networks()

    @abstractmethod
    def check_networks(self) -> None:
        """Raises `UserError` unless the networks fit each other."""

    @property
    @abstractmethod
    def text_length(self) -> int:
        """Most word pieces of a prompt."""

    @property
    @abstractmethod
    def window_samples(self) -> int:
        """Samples of a window, the longest clip."""

    @abstractmethod
    def waves(
        self, program: Program, words: WordPieces, controls: Controls
    ) -> Float32[np.ndarray, " B T *C"]:
        """The waveforms of a window in [-1, 1]; item i depends on row i of its inputs alone."""

    @property
    def window_seconds(self) -> float:
        """Seconds of the longest clip."""
        return self.window_samples / self.sample_rate

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """MuLan with its tokenizer; its text tower tells the diffusions what to write."""
        return PromptEncoder(
            self.params["mulan"],
            self.configs["mulan"],
            self.tokenizer,
            min(self.window_samples, MULAN_SECONDS * self.sample_rate),
            audio_format=self.audio_format,
        )

    def check(self, request: Request, source_samples: int | None = None) -> None:
        """Raises `UserError` for a setting that the system does not have, a blend, and a clip longer than a window."""
        del source_samples
        refuse_settings(request, ABSENT, self.system)
        if not isinstance(request.prompt, str):
            raise UserError(f"{self.system} follows the words of one text; the prompt must be a text")
        if round(request.seconds * self.sample_rate) > self.window_samples:
            raise UserError(
                f"seconds is {request.seconds:g}; {self.system} makes clips of at most {self.window_seconds:g} s"
            )

    def check_prompts(self, request: Request) -> None:
        """Raises `UserError` for a prompt that is empty, or longer than the diffusions were trained with."""
        super().check_prompts(request)
        tokenize_prompt(str(request.prompt), self.text_length, self.tokenizer)

    def program(self, request: Request) -> Program:
        """What is compiled into the program of a request."""
        self.check(request)
        guided = request.guidance_scale != 1
        return Program(int(request.steps), request.schedule, request.solver, guided)

    def count_passes(self, request: Request) -> Evaluations:
        """Passes through the diffusions; guidance doubles them. The length of a clip does not matter."""
        program = self.program(request)
        passes = self.diffusions * diffusion.nfe(program.solver, program.steps)
        return Evaluations(0, passes)

    @in_32_bits
    def run(self, requests: Sequence[Request], *, progress: Progress = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in order; those that share a program are one batch.

        Raises `UserError` for a setting that the system does not have.
        """
        del progress  # a batch is one program
        groups: dict[Program, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self.program(request), []).append(i)
            self.check_prompts(request)
        plan.check_memory(requests, self.audio_format)
        encoded = self.prompt_encoder.encode_requests(
            [request for request in requests if request.best_of > 1]
        )
        clips: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        for program, members in groups.items():
            waves = iter(self._clips([requests[i] for i in members], program))
            for i in members:
                candidates = list(islice(waves, requests[i].best_of))
                many = len(candidates) > 1
                clips[i] = self.best_candidate(encoded[requests[i]], candidates) if many else candidates[0]
        return clips

    def _clips(self, requests: Sequence[Request], program: Program) -> list[np.ndarray]:
        """The candidates of the requests, with faded ends."""
        rows: Rows = [(request, number) for request in requests for number in range(request.best_of)]
        clips = []
        for (request, _), wave in zip(rows, self.waves(program, *self.inputs(rows)), strict=True):
            clip = wave[: round(request.seconds * self.sample_rate)].copy()
            edges.fade_ends(clip, self.sample_rate)
            clips.append(clip)
        return clips

    def inputs(self, rows: Rows) -> tuple[WordPieces, Controls]:
        """The words of requests with candidate numbers, and their other inputs."""
        requests = [request for request, _ in rows]
        words = self.prompt_encoder.word_pieces(
            [str(request.prompt) for request in requests], self.text_length
        )
        nothing = jnp.zeros((len(rows), 0), jnp.int32)
        return words, make_controls(nothing, requests, candidate=[number for _, number in rows])


def follow_words(
    params: Params,
    config: DenoiserConfig,
    program: Program,
    words: WordPieces,
    controls: Controls,
    keys: Key[Array, " B"],
    lower: LowerFrames | None = None,
) -> Float[Array, "B L D"]:
    """The frames that a diffusion writes from noise, guided by words."""
    batch = len(keys)

    def evaluate(noisy: Array, angle: Array) -> Array:
        copies = len(noisy) // batch
        tiled = jax.tree.map(lambda rows: jnp.concatenate([rows] * copies), lower)
        return denoiser.velocity(params, config, noisy, angle, None, batch, text=words, lower=tiled)

    velocity = evaluate
    if program.guided:
        velocity = guidance.guided(evaluate, controls.guidance_scale, controls.guidance_rescale)
    return diffuse(velocity, (config.frames, config.latent_dim), program, keys)


def diffuse(
    velocity: diffusion.VelocityFn, shape: tuple[int, int], program: Program, keys: Key[Array, " B"]
) -> Float[Array, "B L D"]:
    """Frames of `shape` (L, D) from noise."""

    def later_noise(step: Array) -> Array:
        return normal(fold_in(fold_in(keys, 1), step), shape)

    start = normal(fold_in(keys, 0), shape)
    angle_steps = diffusion.angle_steps(program.schedule, program.steps)
    return diffusion.sample(velocity, start, angle_steps, None, program.solver, later_noise)


def check_follows(config: DenoiserConfig, name: str, text_width: int, latent_width: int) -> None:
    """Raises `UserError` unless the diffusion `name` follows words of this width and writes latents of this width."""
    if config.text is None or config.text.width != text_width:
        raise UserError(f"{name} does not follow the words of this mulan; take all files from one release")
    if config.latent_dim != latent_width:
        raise UserError(
            f"{name} writes {config.latent_dim} channels, the decoder reads {latent_width}; take all files from one "
            "release"
        )
