"""Noise2Music's spectrogram route (arXiv 2302.03917): a text, by two diffusions and a vocoder, to music.

    prompt --text tower--> word pieces --generator--> log mels of a low rate --upsampler--> log mels --vae--> waveform

Both diffusions are guided by the words. The upsampler sees the low rate with some noise, whose level it is told,
because what the generator writes is never quite what it was trained on. A clip is one window, without continuation.

A release holds the networks `mulan`, `generator`, `upsampler` and `vae`. The autoencoder may be any without a
quantiser. With `VAEConfig.mel` its latents are log mels, and it is a vocoder.

B batch, L latents, D latent width.
"""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from tokenizers import Tokenizer

from melody_jax import diffusion, guidance
from melody_jax.errors import UserError
from melody_jax.models import denoiser
from melody_jax.models.conditioning import LowerFrames, WordPieces
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.functional import Params
from melody_jax.sampling import edges, plan
from melody_jax.sampling.cascade import load_networks
from melody_jax.sampling.decode import context, decode
from melody_jax.sampling.item_controls import Controls, item_keys, make_controls
from melody_jax.sampling.precision import in_32_bits
from melody_jax.sampling.prompts import PromptEncoder
from melody_jax.sampling.request import Request
from melody_jax.sampling.system import Evaluations, Rows, System, refuse_settings, require_networks

NETWORKS = ("mulan", "generator", "upsampler", "vae")
"""Networks of the system."""
ABSENT = (
    "story",
    "negative_prompt",
    "lm_guidance_scale",
    "temperature",
    "top_k",
    "top_p",
    "strength",
    "keep_tokens",
    "source",
    "regions",
    "bpm",
    "key",
    "metre",
)
"""Settings that Noise2Music does not have: they belong to a language model, or to the continuation of music."""
LOWER_ANGLE = 0.3
"""Angle of the noise that the upsampler's condition gets, radians; about 9 % of its variance."""
GENERATOR, UPSAMPLER, LOWER = range(3)
"""Uses of randomness."""


class Program(NamedTuple):
    """Settings that are compiled into the program of a batch."""

    steps: int
    schedule: str
    solver: str
    guided: bool


class Noise2Music(System):
    """A loaded Noise2Music: `sample_rate` in Hz, `channels`, `window_seconds`, `params`, `configs`.

    Raises `UserError` if the networks do not belong together.
    """

    def __init__(
        self,
        params: dict[str, Params],
        configs: dict[str, Any],
        hashes: dict[str, str],
        tokenizer: Tokenizer,
    ) -> None:
        self.params = params
        self.configs = configs
        self.hashes = hashes
        self.tokenizer = tokenizer
        _check(configs)

    @property
    def window_seconds(self) -> float:
        """Seconds of the longest clip."""
        return self.configs["upsampler"].frames * self.configs["vae"].hop / self.sample_rate

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """MuLan with its tokenizer; its text tower tells the diffusions what to write."""
        samples = self.configs["upsampler"].frames * self.configs["vae"].hop
        return PromptEncoder(
            self.params["mulan"],
            self.configs["mulan"],
            self.tokenizer,
            samples,
            audio_format=self.audio_format,
        )

    def check(self, request: Request, source_samples: int | None = None) -> None:
        """Raises `UserError` for a setting that Noise2Music does not have, a blend, and a clip longer than a window."""
        del source_samples
        refuse_settings(request, ABSENT, "noise2music")
        if not isinstance(request.prompt, str):
            raise UserError("noise2music follows the words of one text; the prompt must be a text")
        if request.seconds > self.window_seconds:
            raise UserError(
                f"seconds is {request.seconds:g}; noise2music makes clips of at most {self.window_seconds:g} s"
            )

    def program(self, request: Request) -> Program:
        """What is compiled into the program of a request."""
        self.check(request)
        guided = request.guidance_scale != 1
        return Program(int(request.steps), request.schedule, request.solver, guided)

    def count_passes(self, seconds: float) -> Evaluations:
        """Passes through the two diffusions at the default number of steps, without guidance, for any length."""
        request = Request(prompt="any", seconds=seconds)
        self.check(request)
        return Evaluations(0, 2 * diffusion.nfe(request.solver, int(request.steps)))

    @in_32_bits
    def run(self, requests: Sequence[Request], *, progress: bool = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in order; those that share a program are one batch.

        Raises `UserError` for a setting that Noise2Music does not have.
        """
        del progress  # a batch is one program
        groups: dict[Program, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self.program(request), []).append(i)
            self.check_prompts(request)
        plan.check_memory(requests, self.configs)
        encoder = self.prompt_encoder
        encoded = encoder.encode_requests([request for request in requests if request.best_of > 1])
        clips: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        for program, members in groups.items():
            rows = [(requests[i], number) for i in members for number in range(requests[i].best_of)]
            waves = iter(self._waves(rows, program))
            for i in members:
                candidates = list(islice(waves, requests[i].best_of))
                chosen = (
                    self.best_candidate(encoded[requests[i]], candidates)
                    if len(candidates) > 1
                    else candidates[0]
                )
                clips[i] = chosen
        return clips

    def latents(self, rows: Rows, program: Program) -> Float[Array, "B L D"]:
        """The latents of requests with candidate numbers."""
        requests = [request for request, _ in rows]
        words = self.prompt_encoder.word_pieces([str(request.prompt) for request in requests])
        nothing = jnp.zeros((len(rows), 0), jnp.int32)
        controls = make_controls(nothing, requests, candidate=[number for _, number in rows])
        networks = {name: self.params[name] for name in ("generator", "upsampler")}
        return sample_latents(
            networks, (self.configs["generator"], self.configs["upsampler"]), program, words, controls
        )

    def _waves(self, rows: Rows, program: Program) -> list[np.ndarray]:
        """The clips of requests with candidate numbers, with faded ends."""
        config = self.configs["vae"]
        window = max(self.configs["upsampler"].frames, 4 * context(config))
        parts = decode(self.params["vae"], config, [self.latents(rows, program)], window)
        clips = []
        for (request, _), wave in zip(rows, np.concatenate(list(parts), axis=1), strict=True):
            clip = wave[: round(request.seconds * self.sample_rate)]
            edges.fade_ends(clip, self.sample_rate)
            clips.append(clip)
        return clips


@partial(jax.jit, static_argnames=("configs", "program"))
def sample_latents(
    params: dict[str, Params],
    configs: tuple[DenoiserConfig, DenoiserConfig],
    program: Program,
    words: WordPieces,
    controls: Controls,
) -> Float[Array, "B L D"]:
    """The latents that generator and upsampler write; item i depends on row i of its inputs alone."""
    keys = item_keys(controls)
    generator, upsampler = configs
    low = _diffuse(params["generator"], generator, program, words, controls, _fold_in(keys, GENERATOR))
    noise = _normal(_fold_in(keys, LOWER), low.shape[1:])
    noisy, _ = diffusion.corrupt(low, noise, LOWER_ANGLE)
    lower = LowerFrames(noisy, jnp.full(len(low), LOWER_ANGLE))
    return _diffuse(
        params["upsampler"], upsampler, program, words, controls, _fold_in(keys, UPSAMPLER), lower
    )


def _diffuse(
    params: Params,
    config: DenoiserConfig,
    program: Program,
    words: WordPieces,
    controls: Controls,
    keys: Key[Array, " B"],
    lower: LowerFrames | None = None,
) -> Float[Array, "B L D"]:
    """One diffusion from noise."""
    batch = len(keys)
    shape = (config.frames, config.latent_dim)

    def evaluate(noisy: Array, angle: Array) -> Array:
        copies = len(noisy) // batch
        tiled = jax.tree.map(lambda rows: jnp.concatenate([rows] * copies), lower)
        return denoiser.velocity(params, config, noisy, angle, None, batch, text=words, lower=tiled)

    velocity = evaluate
    if program.guided:
        velocity = guidance.guided(evaluate, controls.guidance_scale, controls.guidance_rescale)

    def later_noise(step: Array) -> Array:
        return _normal(_fold_in(_fold_in(keys, 1), step), shape)

    start = _normal(_fold_in(keys, 0), shape)
    angle_steps = diffusion.angle_steps(program.schedule, program.steps)
    return diffusion.sample(velocity, start, angle_steps, None, program.solver, later_noise)


def _fold_in(keys: Key[Array, " B"], use: int | Array) -> Key[Array, " B"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def _normal(keys: Key[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _check(configs: dict[str, Any]) -> None:
    """Raises `UserError` unless the networks fit each other."""
    generator, upsampler, codec = (configs[name] for name in ("generator", "upsampler", "vae"))
    width = configs["mulan"].text.width
    for name in ("generator", "upsampler"):
        config = configs[name]
        if config.text is None or config.text.width != width:
            raise UserError(
                f"{name} does not follow the words of this mulan; take all files from one release"
            )
        if config.latent_dim != codec.latent_width:
            raise UserError(
                f"{name} writes {config.latent_dim} channels, vae reads {codec.latent_width}; take all files from one "
                "release"
            )
    if not upsampler.lower_ratio or generator.frames * upsampler.lower_ratio != upsampler.frames:
        raise UserError(
            f"generator writes {generator.frames} frames, upsampler {upsampler.frames} from {upsampler.lower_ratio} "
            "times fewer; take all files from one release"
        )


@in_32_bits
def load(name: str, *, folder: str | Path | None = None) -> Noise2Music:
    """The Noise2Music released as `name`, from the package or from `folder/name`; nothing is downloaded.

    Raises `UserError` if there is no such release, a network is missing (the message says how to train it) or damaged,
    or they do not belong together.
    """
    require_networks(name, folder, NETWORKS, "noise2music")
    params, configs, hashes, tokenizer = load_networks(name, folder, NETWORKS)
    assert tokenizer is not None
    return Noise2Music(params, configs, hashes, tokenizer)
