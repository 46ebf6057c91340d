"""MusicLM (arXiv 2301.11325): a semantic, a coarse and a fine language model, and a residual-VQ codec.

    prompt --MuLan--> prefix tokens --lm--> semantic tokens --coarse--> first codes of each frame --fine--> the others
    codes --codec--> waveform

Semantic and coarse tokens are written in windows that overlap by half: the second half of a window is the context of
the next. Fine codes are written in shorter windows one after the other, from the coarse codes of their own time. All
draws of an item derive from its own key, so a clip does not depend on its batch.

A release holds the networks `mulan`, `lm`, `coarse`, `fine` and `vae`, an autoencoder with a quantiser.

B batch, P prefix tokens, U semantic tokens of a window, N codes, L frames, V levels.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from melody_jax import release
from melody_jax.audio_format import TOKEN_RATE
from melody_jax.errors import UserError
from melody_jax.models import decoding, vae
from melody_jax.models.decoding import CANDIDATES
from melody_jax.models.functional import Params
from melody_jax.models.lm_config import LMConfig
from melody_jax.sampling import edges, plan, windows
from melody_jax.sampling.cascade import load_networks
from melody_jax.sampling.decode import context, decode
from melody_jax.sampling.precision import in_32_bits
from melody_jax.sampling.prompts import PromptEncoder
from melody_jax.sampling.request import Request, is_array
from melody_jax.sampling.settings import shorten
from melody_jax.sampling.system import Encoded, Rows, System, controls_at
from melody_jax.sampling.windows import Controls

NETWORKS = ("mulan", "lm", "coarse", "fine", "vae")
"""Networks of the system."""
ABSENT = (
    "steps",
    "schedule",
    "solver",
    "guidance_scale",
    "strength",
    "keep_tokens",
    "source",
    "bpm",
    "key",
    "metre",
)
"""Settings that MusicLM does not have: they belong to a diffusion, or need networks that it lacks."""
SEMANTIC, COARSE, FINE = range(3)
"""Uses of randomness."""


class MusicLM(System):
    """A loaded MusicLM: `sample_rate` in Hz, `channels`, `window_seconds`, `params`, `configs`.

    Raises `UserError` if the networks do not belong together.
    """

    def __init__(self, params: dict[str, Params], configs: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.params = params
        self.configs = configs
        self.tokenizer = tokenizer
        _check(configs)

    @property
    def window_tokens(self) -> int:
        """Semantic tokens of a window, U."""
        return self.configs["coarse"].condition.length

    @property
    def hop_tokens(self) -> int:
        """Semantic tokens that each window after the first adds."""
        return self.window_tokens - self.window_tokens // 2

    @property
    def window_seconds(self) -> float:
        """Seconds of one window."""
        return self.window_tokens / TOKEN_RATE

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """MuLan with its tokenizer."""
        samples = self.window_tokens * self.audio_format.token_samples
        config = self.configs["mulan"]
        return PromptEncoder(
            self.params["mulan"], config, self.tokenizer, samples, audio_format=self.audio_format
        )

    @in_32_bits
    def run(self, requests: Sequence[Request], *, progress: bool = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in order; those that share a program are one batch.

        Raises `UserError` for a setting that MusicLM does not have.
        """
        for request in requests:
            _check_request(request)
        encoded = self.prompt_encoder.encode_requests(requests)
        groups: dict[tuple[int, bool, int], list[int]] = {}
        for i, request in enumerate(requests):
            candidates = plan.candidates_for(request.top_k, self.configs["lm"].semantic_vocab)
            program = (self._windows(request.seconds), request.lm_guidance_scale != 1, candidates)
            groups.setdefault(program, []).append(i)
        clips: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        for program, members in groups.items():
            rows = [(requests[i], number) for i in members for number in range(requests[i].best_of)]
            waves = iter(self._clips(rows, encoded, *program, progress))
            for i in members:
                clips[i] = self.best_candidate(encoded[requests[i]], list(islice(waves, requests[i].best_of)))
        return clips

    def _windows(self, seconds: float) -> int:
        """Semantic windows that cover a clip."""
        beyond = seconds * TOKEN_RATE - self.window_tokens
        return 1 + max(0, math.ceil(round(beyond / self.hop_tokens, 6)))

    def _clips(
        self,
        rows: Rows,
        encoded: Encoded,
        count: int,
        guided: bool,
        candidates: int,
        progress: bool,
    ) -> list[np.ndarray]:
        """The waveforms of candidates, as many samples as their requests ask for."""
        lengths = [round(request.seconds * self.sample_rate) for request, _ in rows]
        codes = self.codes(rows, encoded, count, guided, candidates, progress)
        config = self.configs["vae"]
        latents = vae.dequantise(self.params["vae"], config, codes)
        window = max(self.window_tokens * self._frames_per_token, 4 * context(config))
        wave = np.concatenate(list(decode(self.params["vae"], config, [latents], window)), axis=1)
        clips = [row[:length].copy() for row, length in zip(wave, lengths, strict=True)]
        for clip in clips:
            edges.fade_ends(clip, self.sample_rate)
        return clips

    def codes(
        self,
        rows: Rows,
        encoded: Encoded,
        count: int,
        guided: bool,
        candidates: int = CANDIDATES,
        progress: bool = False,
    ) -> jax.Array:
        """The codes (B, L, V) of clips of `count` semantic windows; rows are requests with candidate numbers."""
        controls = controls_at(rows, encoded, candidates)
        semantic = None
        coarse = None
        with tqdm(total=count, unit="window", disable=None if progress else True) as bar:
            for number in range(count):
                begin = self.window_tokens + (number - 1) * self.hop_tokens if number else 0  # of what is new
                at_time = controls([begin / TOKEN_RATE] * len(rows))
                semantic, coarse = self._window(number, guided, at_time, semantic, coarse, candidates)
                bar.update()
        assert coarse is not None
        return self._fine(controls([0.0] * len(rows)), coarse, candidates)

    def _window(
        self,
        number: int,
        guided: bool,
        controls: Controls,
        semantic: jax.Array | None,
        coarse: jax.Array | None,
        candidates: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Semantic tokens (B, U + ...) and coarse codes (B, N) of a clip, one window longer."""
        config = self.configs["coarse"]
        size = self.window_tokens
        new = self.hop_tokens
        codes_per_token = self._frames_per_token * config.code_levels
        primer = None if semantic is None else semantic[:, new - size :]
        written = _write(
            self.params["lm"], self.configs["lm"], size, guided, candidates, SEMANTIC, number, controls,
            controls.prefix_tokens, primer,
        )  # fmt: skip
        semantic = written if semantic is None else jnp.concatenate([semantic, written[:, -new:]], axis=1)
        prompt = jnp.concatenate([controls.prefix_tokens[:, : config.prompt_length], written], axis=1)
        primer = None if coarse is None else coarse[:, (new - size) * codes_per_token :]
        length = size * codes_per_token
        codes = _write(
            self.params["coarse"],
            config,
            length,
            guided,
            candidates,
            COARSE,
            number,
            controls,
            prompt,
            primer,
        )
        if coarse is None:
            return semantic, codes
        return semantic, jnp.concatenate([coarse, codes[:, -new * codes_per_token :]], axis=1)

    def _fine(self, controls: Controls, coarse: jax.Array, candidates: int) -> jax.Array:
        """All codes (B, L, V) from flattened coarse ones (B, N), window by window; the last window ends with the clip.

        A clip shorter than a window is filled up with its last frame.
        """
        config = self.configs["fine"]
        levels = self.configs["coarse"].code_levels
        batch = len(coarse)
        frames = coarse.reshape(batch, -1, levels)
        count = frames.shape[1]
        size = config.condition.length // levels
        padded = jnp.pad(frames, ((0, 0), (0, max(0, size - count)), (0, 0)), mode="edge")
        parts: list[jax.Array] = []
        for number in range(-(-count // size)):
            first = min(number * size, padded.shape[1] - size)
            window = padded[:, first : first + size].reshape(batch, -1)
            codes = _write(
                self.params["fine"], config, size * config.code_levels, False, candidates, FINE, number, controls,
                window,
            )  # fmt: skip
            parts.append(codes.reshape(batch, size, -1)[:, number * size - first :])
        fine = jnp.concatenate(parts, axis=1)[:, :count]
        return jnp.concatenate([frames, fine], axis=2)

    @property
    def _frames_per_token(self) -> int:
        return self.audio_format.token_samples // self.configs["vae"].hop


@partial(jax.jit, static_argnames=("config", "length", "guided", "use", "candidates"))
def _write(
    params: Params,
    config: LMConfig,
    length: int,
    guided: bool,
    candidates: int,
    use: int,
    number: jax.Array | int,
    controls: Controls,
    prompt: jax.Array,
    primer: jax.Array | None = None,
) -> jax.Array:
    """`length` tokens (B, length) after a prompt and a primer; every window and use has draws of its own."""
    prompt = prompt[:, : config.prefix_length]
    keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, use), number))(
        windows.item_keys(controls)
    )
    negative = jnp.concatenate(
        [controls.negative_prefix_tokens[:, : config.prompt_length], prompt[:, config.prompt_length :]],
        axis=1,
    )
    return decoding.generate(
        params,
        config,
        prompt,
        keys,
        length,
        temperature=controls.temperature,
        top_k=controls.top_k,
        top_p=controls.top_p,
        guidance_scale=controls.lm_guidance_scale if guided and config.prompt_length else 1.0,
        primer=primer,
        negative_prefix_tokens=negative,
        candidates=candidates,
    )


def _check(configs: dict[str, Any]) -> None:
    """Raises `UserError` unless the networks fit each other."""
    codec = configs["vae"]
    coarse = configs["coarse"]
    fine = configs["fine"]
    if codec.quantiser is None:
        raise UserError(
            "vae has no quantiser; MusicLM needs a codec with codes, such as configs/codec_paper.py"
        )
    if coarse.condition is None or fine.condition is None:
        raise UserError("coarse or fine has no condition; they are no acoustic models of MusicLM")
    levels = coarse.code_levels + fine.code_levels
    if levels > codec.quantiser.levels or coarse.semantic_vocab != codec.quantiser.codes:
        raise UserError(
            f"coarse and fine write {levels} levels of {coarse.semantic_vocab} codes, the codec has "
            f"{codec.quantiser.levels} of {codec.quantiser.codes}; take all files from one release"
        )
    sizes = {
        "prefix levels of lm and mulan": (configs["lm"].prefix_levels, configs["mulan"].levels),
        "prefix codes of lm and mulan": (configs["lm"].prefix_codes, configs["mulan"].codes),
        "semantic ids of coarse and lm": (coarse.condition.ids, configs["lm"].semantic_vocab),
        "codes of fine and the codec": (fine.semantic_vocab, codec.quantiser.codes),
        "codes that fine follows and those of the codec": (fine.condition.ids, codec.quantiser.codes),
    }
    for what, (one, other) in sizes.items():
        if one != other:
            raise UserError(f"{what} are {one} and {other}; take all files from one release")
    frames = codec.audio_format.token_samples // codec.hop
    if coarse.code_levels != fine.condition.levels or fine.condition.length % (frames * coarse.code_levels):
        raise UserError(
            f"fine follows {fine.condition.length} codes of {fine.condition.levels} levels, coarse writes "
            f"{coarse.code_levels}; take both from one release"
        )


def _check_request(request: Request) -> None:
    """Raises `UserError` for a setting that MusicLM does not have."""
    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    for name in ABSENT:
        value = getattr(request, name)
        if is_array(value) or value != defaults[name]:
            raise UserError(f"{name} is {shorten(value)}: musiclm has no such setting; leave it out")


@in_32_bits
def load(name: str, *, folder: str | Path | None = None) -> MusicLM:
    """The MusicLM released as `name`, from the package or from `folder/name`; nothing is downloaded.

    Raises `UserError` if there is no such release, a network is missing (the message says how to train it) or damaged,
    or they do not belong together.
    """
    path = release.root(folder) / name
    missing = [network for network in NETWORKS if not (path / f"{network}.json").exists()]
    if path.is_dir() and missing:
        raise UserError(
            f"{path} has no {missing[0]}, and musiclm needs {', '.join(NETWORKS)}; train it as docs/systems.md says, "
            f"then `melody export --run RUN --out {path}`"
        )
    params, configs, _, tokenizer = load_networks(name, folder, NETWORKS)
    assert tokenizer is not None
    return MusicLM(params, configs, tokenizer)
