"""The public face of the cascade: `load("mini").generate(prompts, seconds=10, seed=0)`."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from melody_jax import audio, diffusion, release
from melody_jax.data import text
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sampling import generate

NETWORKS = ("mulan", "lm", "dpd", "vae")
MAX_SECONDS = 600.0


class Melody:
    """A loaded cascade: `sample_rate` in Hz, `window_seconds`, `params`, `configs`, `tokenizer` of texts."""

    sample_rate = audio.SAMPLE_RATE

    def __init__(self, params: dict[str, Params], configs: dict, tokenizer: Tokenizer | None) -> None:
        self.params = params
        self.configs = configs
        self.tokenizer = tokenizer

    @property
    def window_seconds(self) -> float:
        """How long one window is: what the networks hear and make at a time."""
        return self.configs["dpd"].frames * self.configs["vae"].hop / self.sample_rate

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float = 10.0,
        steps: int = 5,
        guidance_scale: float = 2.5,
        seed: int | Sequence[int] = 0,
        temperature: float = 1.1,
        lm_guidance_scale: float = 2.0,
        top_k: int = 250,
        schedule: str = "paper",
        progress: bool = False,
    ) -> np.ndarray:
        """Music for each prompt: float32 (B, samples) in [-1, 1] at `sample_rate`, trimmed to `seconds`.

        prompts: one text or a list of B texts, each at most as many word pieces as the text encoder takes (62).
        seconds: above 0, at most 600; what is longer than `window_seconds` is continued chunk by chunk (section 3.5).
        steps: diffusion steps of a window, 1 to 1000.
        guidance_scale: of the diffusion, finite, 1 is none (2.5 in the paper, section 3.5).
        seed: one integer (item i gets seed + i) or one per prompt, in [0, 2**31). An item's clip depends on its own
        prompt and seed only.
        temperature, top_k, lm_guidance_scale: of the language model; temperature >= 0, 0 is greedy. At the defaults
        mini's tokens repeat as often as those of real clips (docs/mini.md).
        schedule: angle schedule, "paper" or "uniform" (section 3.4). progress: shows a bar of the chunks.
        Raises UserError, one line, for anything outside these ranges.
        """
        if missing := [network for network in NETWORKS if network not in self.params]:
            raise UserError(f"{missing[0]} was not loaded; generating needs {', '.join(NETWORKS)}")
        assert self.tokenizer is not None
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = _seeds(seed, len(texts))
        ids, mask = _tokenise(texts, self.configs["mulan"].text.max_length, self.tokenizer)
        _check_number("seconds", seconds, 0.0, MAX_SECONDS)
        _check_integer("steps", steps, 1, 1000)
        _check_integer("top_k", top_k, 1, 2**31 - 1)
        for name, value in (("guidance_scale", guidance_scale), ("lm_guidance_scale", lm_guidance_scale)):
            _check_number(name, value, -100.0, 100.0)
        _check_number("temperature", temperature, -1e-9, 100.0)
        diffusion.omegas(schedule, steps)  # names an unknown schedule
        least, most = self.configs["dpd"].guidance_range or (-math.inf, math.inf)
        if not least <= guidance_scale <= most:
            raise UserError(f"guidance_scale is {guidance_scale}; the distilled diffusion knows {least:g} to {most:g}")
        config = generate.SamplerConfig(
            mulan=self.configs["mulan"],
            lm=self.configs["lm"],
            dpd=self.configs["dpd"],
            steps=steps,
            schedule=schedule,
            guided=guidance_scale != 1,
            lm_guided=lm_guidance_scale != 1,
            top_k=top_k,
        )
        sampler_params = {name: self.params[name] for name in ("mulan", "lm", "dpd")}
        scales = (jnp.float32(temperature), jnp.float32(lm_guidance_scale), jnp.float32(guidance_scale))
        window = generate.first_window(sampler_params, config, ids, mask, seeds, *scales)
        latents = [window.latents]
        frame_seconds = self.configs["vae"].hop / self.sample_rate
        missing_frames = math.ceil(seconds / frame_seconds - 1e-9) - config.dpd.frames
        chunks = math.ceil(missing_frames / config.chunk_frames) if missing_frames > 0 else 0
        for number in tqdm(range(1, chunks + 1), desc="chunks", disable=not (progress and chunks)):
            moved = config.chunk_tokens(number)
            window = generate.next_window(sampler_params, config, window, moved, jnp.int32(number), seeds, *scales)
            latents.append(jax.block_until_ready(window.latents[:, -config.chunk_frames :]))
        latents = jnp.concatenate(latents, axis=1)
        wave = generate.latents_to_wave(self.params["vae"], self.configs["vae"], latents)
        samples = round(seconds * self.sample_rate)
        return np.stack([audio.peak_limit(item) for item in np.asarray(wave)[:, :samples]])


def load(
    name: str = "mini",
    *,
    folder: str | Path | None = None,
    networks: Sequence[str] = NETWORKS,
    distilled: bool = False,
) -> Melody:
    """The released cascade `name`, from the package or from `folder/name`; nothing is downloaded.

    networks: those to load; generating needs the default, measuring stages also "tokenizer".
    distilled: the diffusion for 1, 2 or 4 steps takes the place of the other one (docs/distillation.md).

    Raises UserError if there is no such release, a file of it is missing or damaged, or its networks were not made
    for each other (the hashes in each JSON name the networks it was trained with).
    """
    root = Path(folder) if folder is not None else release.WEIGHTS
    path = root / name
    if not path.is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise UserError(f"no released model {name!r} in {root}; there are: {', '.join(there) or 'none'}")
    if distilled:
        networks = ["dpd_distilled" if network == "dpd" else network for network in networks]
    loaded = {network: release.load_network(path, network) for network in networks}
    own = {network: release.network_hash(path, network) for network in networks}
    for network, (_, _, needs) in loaded.items():
        for other, digest in needs.items():
            if other in own and own[other] != digest:
                raise UserError(
                    f"{path}: {network} was trained with {other} {digest[:12]}, but {other} here is {own[other][:12]}; "
                    "take all files from one release"
                )
    loaded = {release.DIFFERENCES.get(network, network): parts for network, parts in loaded.items()}
    configs = {network: config for network, (_, config, _) in loaded.items()}
    tokenizer = release.load_tokenizer(path, configs["mulan"].text.vocab_size) if "mulan" in configs else None
    return Melody({network: params for network, (params, _, _) in loaded.items()}, configs, tokenizer)


def _seeds(seed: int | Sequence[int], count: int) -> np.ndarray:
    seeds = [int(seed) + i for i in range(count)] if isinstance(seed, int | np.integer) else [int(s) for s in seed]
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts; give one integer or one seed per prompt")
    for value in seeds:
        if not 0 <= value < 2**31:
            raise UserError(f"seed {value} is outside 0 to {2**31 - 1}")
    return np.asarray(seeds, np.int32)


def _tokenise(texts: list[str], length: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    if not texts:
        raise UserError("no prompts; give at least one")
    for item in texts:
        if not isinstance(item, str) or not item.strip():
            raise UserError(f"prompt {item!r} is empty; describe the music in a few words")
        pieces = text.token_count(item, tokenizer)
        if pieces > length:
            raise UserError(
                f"prompt {item[:40]!r}... has {pieces - 2} word pieces; at most {length - 2} fit, shorten it"
            )
    return text.tokenize(texts, length, tokenizer)


def _check_number(name: str, value: float, above: float, most: float, hint: str = "") -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not above < value <= most:
        raise UserError(
            f"{name} is {value}; it must be above {max(above, 0) if above > -1 else above:g} and at most "
            f"{most:g}{f' ({hint})' if hint else ''}"
        )


def _check_integer(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} is {value}; it must be a whole number from {least} to {most}")
