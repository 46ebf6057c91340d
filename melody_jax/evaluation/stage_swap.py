"""Clips of a system with ground truth inserted one stage earlier each time, to locate the stage that loses quality.

`entry_stages.py` names the stages of every system; `melody diagnose` is the command.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import release_source
from melody_jax.errors import UserError
from melody_jax.evaluation.entry_stages import STAGES
from melody_jax.evaluation.sound import Sound
from melody_jax.models import diffusion_codec, mulan, tokenizer, vae
from melody_jax.models.functional import Params
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody, load_networks
from melody_jax.sampling.item_controls import item_keys
from melody_jax.sampling.plan import NETWORKS
from melody_jax.sampling.request import Request, make_requests
from melody_jax.sampling.settings import SamplingSettings, shared_settings
from melody_jax.sampling.system import System, controls_at, require_networks
from melody_jax.systems import load, musiclm
from melody_jax.systems.mousai import Mousai
from melody_jax.systems.musiclm import MusicLM
from melody_jax.systems.noise2music import Noise2Music
from melody_jax.training.stages.text_diffusion import lower_rate

Waves = np.ndarray
"""Clips (B, T) or (B, T, 2)."""


def load_system(name: str, system: str, folder: str) -> System:
    """A release with the networks that true clips are read with. Raises `UserError` if there is none."""
    if system not in STAGES:
        raise UserError(
            f"system is {system!r}; it must be one of {', '.join(STAGES)}: others follow no prompts"
        )
    name, root = release_source.local_name(name, folder or None)
    if system == "melody":
        return load(name, folder=root, networks=(*NETWORKS, "tokenizer"))
    if system == "musiclm":
        networks = (*musiclm.NETWORKS, "tokenizer")
        require_networks(name, root, networks, "melody diagnose")
        params, configs, hashes, text_tokenizer = load_networks(name, root, networks)
        assert text_tokenizer is not None
        return MusicLM(params, configs, hashes, text_tokenizer)
    return load(name, system=system, folder=root)


def swap_stages(
    system: System, waves: Waves, texts: Sequence[str], settings: SamplingSettings
) -> dict[str, Waves]:
    """Clips for each of the system's stages after the truth.

    Args:
        system: one from `load_system`.
        waves: true clips of one window each, in the model's format, as all clips are returned.
        texts: their prompts.
        settings: how the networks sample; clip i has its seed plus i.
    """
    swap = next(function for kind, function in SWAPS.items() if isinstance(system, kind))
    given = shared_settings(settings) | {"seconds": system.window_seconds}
    requests = make_requests(texts, given)
    return swap(system, jnp.asarray(waves), requests) | {"text": np.stack(system.run(requests))}


def _swap_melody(melody: Melody, waves: jax.Array, requests: Sequence[Request]) -> dict[str, Waves]:
    params = melody.params
    (batch,) = melody.plan(requests)
    prefix, tokens = _read_tokens(melody, waves)
    latents = _encode(params["vae"], melody.configs["vae"], waves)
    encoded = melody.prompt_encoder.encode_requests(batch.requests)
    controls = melody.controls_at(batch, encoded)([0.0] * len(requests))._replace(prefix_tokens=prefix)
    keys = item_keys(controls)

    def decode(latents: jax.Array) -> Waves:
        return np.asarray(windows.latents_to_wave(params["vae"], melody.configs["vae"], latents))

    diffuse = partial(_tokens_to_latents, params["dpd"], batch.config, controls)
    lm_tokens = _prefix_to_tokens(params["lm"], batch.config, controls, keys)
    return {
        "vae": decode(latents),
        "dpd": decode(diffuse(tokens, keys)),
        "lm": decode(diffuse(lm_tokens, keys)),
    }


def _swap_musiclm(system: MusicLM, waves: jax.Array, requests: Sequence[Request]) -> dict[str, Waves]:
    levels = system.configs["coarse"].code_levels
    codes = _codes(system.params["vae"], system.configs["vae"], waves)
    codes = codes[..., : levels + system.configs["fine"].code_levels]
    prefix, tokens = _read_tokens(system, waves)
    _, writing = system.program(requests[0])
    encoded = system.prompt_encoder.encode_requests(requests)
    rows = [(request, 0) for request in requests]
    prompts = controls_at(rows, encoded, writing.candidates)([0.0] * len(rows))
    controls = prompts._replace(prefix_tokens=prefix)
    coarse = system.coarse_codes(controls, writing, tokens)
    clips = {
        "vae": codes,
        "fine": system.all_codes(controls, writing, codes[..., :levels]),
        "coarse": system.all_codes(controls, writing, coarse),
        "lm": system.write(lambda _: controls, 1, writing).codes,
    }
    return {stage: system.waves(written) for stage, written in clips.items()}


def _swap_noise2music(system: Noise2Music, waves: jax.Array, requests: Sequence[Request]) -> dict[str, Waves]:
    latents = _encode(system.params["vae"], system.configs["vae"], waves)
    words, controls = system.inputs([(request, 0) for request in requests])
    low = lower_rate(latents, system.configs["upsampler"].lower_ratio)
    program = system.program(requests[0])
    return {
        "vae": system.decode(latents),
        "upsampler": system.decode(system.latents(program, words, controls, low)),
    }


def _swap_mousai(system: Mousai, waves: jax.Array, requests: Sequence[Request]) -> dict[str, Waves]:
    latents = _encode_magnitudes(system.params["dmae"], system.configs["dmae"], waves)
    _, controls = system.inputs([(request, 0) for request in requests])
    return {"dmae": system.decode(system.program(requests[0]), controls, latents)}


SWAPS: dict[type, Callable[..., dict[str, Waves]]] = {
    Melody: _swap_melody,
    MusicLM: _swap_musiclm,
    Noise2Music: _swap_noise2music,
    Mousai: _swap_mousai,
}


def _read_tokens(system: System, waves: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prefix tokens (B, P) and semantic tokens (B, U) of true clips."""
    mono = np.stack([Sound(np.asarray(wave), system.audio_format).to() for wave in waves])
    names = ("mulan", "tokenizer")
    configs = tuple(system.configs[name] for name in names)
    return _tokens({name: system.params[name] for name in names}, configs, jnp.asarray(mono))


@partial(jax.jit, static_argnums=1)
def _tokens(
    params: dict[str, Params], configs: tuple[Any, Any], mono: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`_read_tokens` of clips in 24 kHz mono."""
    embedding = mulan.embed_music(params["mulan"], configs[0], mono)
    prefix = mulan.quantise(params["mulan"], configs[0], embedding)
    return prefix, tokenizer.tokenize(params["tokenizer"], configs[1], mono)


_codes = partial(jax.jit, static_argnums=1)(vae.codes)
_encode = partial(jax.jit, static_argnums=1)(vae.encode)
_encode_magnitudes = partial(jax.jit, static_argnums=1)(diffusion_codec.encode)
_tokens_to_latents = partial(jax.jit, static_argnums=1)(windows.tokens_to_latents)
_prefix_to_tokens = partial(jax.jit, static_argnums=1)(windows.prefix_to_tokens)
