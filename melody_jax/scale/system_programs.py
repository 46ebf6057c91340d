"""Samplers of the systems other than MeLoDy, for ahead-of-time compilation: from word pieces to one window of audio.

Traced from shapes alone, data parallel, with all weights on every device.
"""

import importlib
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from melody_jax import release
from melody_jax.config import load_config
from melody_jax.models import text_tower, vae
from melody_jax.models.conditioning import WordPieces
from melody_jax.models.functional import Params
from melody_jax.sampling.item_controls import Controls
from melody_jax.sampling.prompts import targets_to_prefix, text_targets
from melody_jax.sampling.request import Request
from melody_jax.scale.programs import PAPER_PIECES, trace_per_device
from melody_jax.sharding import check_batch
from melody_jax.systems import mousai
from melody_jax.systems.audiolm import AudioLM
from melody_jax.systems.mousai import Mousai
from melody_jax.systems.musiclm import MusicLM
from melody_jax.systems.noise2music import Noise2Music
from melody_jax.systems.text_diffusion import Program, TextDiffusion
from melody_jax.systems.token_cascade import TokenCascade
from melody_jax.systems.token_writing import SEMANTIC, Writing, write_tokens

Configs = dict[str, Any]
"""Network -> its config."""
NO_TOKENIZER: Any = None
"""Word pieces are given."""
PAPER = {
    "musiclm": {
        "mulan": "mulan_paper",
        "lm": "lm_paper",
        "coarse": "coarse_paper",
        "fine": "fine_paper",
        "vae": "codec_paper",
    },
    "audiolm": {
        "tokenizer": "tokenizer_paper",
        "lm": "lm_audiolm_paper",
        "coarse": "coarse_audiolm_paper",
        "fine": "fine_audiolm_paper",
        "vae": "codec_paper",
    },
    "noise2music": {
        "mulan": "mulan_paper",
        "generator": "generator_paper",
        "upsampler": "upsampler_paper",
        "vae": "vocoder_paper",
    },
    "mousai": {
        "mulan": "mulan_paper",
        "latent_generator": "latent_generator_paper",
        "dmae": "dmae_paper",
    },
}
"""System -> network -> the config of the published size."""


def paper_configs(system: str) -> Configs:
    """The networks of a system in the published size."""
    return {network: load_config(name).stage.model for network, name in PAPER[system].items()}


def trace_system(system: str, configs: Configs, batch_size: int, mesh: Mesh) -> Any:
    """The traced sampler of one window (`jax.stages.Traced`), with the default number of steps of each diffusion.

    All systems are guided except AudioLM, which takes no prompt: it receives the word pieces and ignores them, so that
    all samplers have the same inputs. Raises `UserError` as `sharding.check_batch`.
    """
    check_batch(batch_size, mesh)
    function, pieces = {
        "musiclm": (_musiclm, None),
        "audiolm": (_audiolm, None),
        "noise2music": (_noise2music, "generator"),
        "mousai": (_mousai, "latent_generator"),
    }[system]
    shapes = {
        network: _module(network).shapes(config)
        for network, config in configs.items()
        if network != "tokenizer"
    }
    length = configs[pieces].text.length if pieces else PAPER_PIECES
    levels = configs["mulan"].levels if "mulan" in configs else 0

    def sample(params: dict[str, Params], ids: Array, mask: Array, controls: Controls) -> Array:
        return function(params, configs, ids, mask, controls)

    return trace_per_device(sample, shapes, batch_size, levels, mesh, length)


def _module(network: str) -> Any:
    return importlib.import_module(f"melody_jax.models.{release.NETWORKS[network][0]}")


def _musiclm(
    params: dict[str, Params], configs: Configs, ids: Array, mask: Array, controls: Controls
) -> Float[Array, " B T *C"]:
    targets = text_targets(params["mulan"], configs["mulan"], ids, mask)
    prefix = targets_to_prefix(params["mulan"], configs["mulan"], targets)
    system = MusicLM(params, configs, {}, NO_TOKENIZER)
    return _write(system, controls._replace(prefix_tokens=prefix), Writing(guided=True))


def _audiolm(
    params: dict[str, Params], configs: Configs, ids: Array, mask: Array, controls: Controls
) -> Float[Array, " B T *C"]:
    del ids, mask
    return _write(AudioLM(params, configs, {}), controls, Writing(guided=False))


def _write(system: TokenCascade, controls: Controls, writing: Writing) -> Float[Array, " B T *C"]:
    """The sound of one window of a token cascade."""
    lm = system.configs["lm"]
    none = jnp.zeros((len(controls.seeds), 0), jnp.int32)
    semantic = write_tokens(
        system.params["lm"],
        lm,
        system.window_tokens,
        SEMANTIC,
        controls.prefix_tokens[:, : lm.prompt_length],
        none,
        0,
        writing=writing,
        number=0,
        controls=controls,
    )
    codes = system.all_codes(controls, writing, system.coarse_codes(controls, writing, semantic.tokens))
    config = system.configs["vae"]
    return vae.decode(system.params["vae"], config, vae.dequantise(system.params["vae"], config, codes))


def _noise2music(
    params: dict[str, Params], configs: Configs, ids: Array, mask: Array, controls: Controls
) -> Float[Array, " B T *C"]:
    system = Noise2Music(params, configs, {}, NO_TOKENIZER)
    latents = system.latents(_program(system), _words(params, configs, ids, mask), controls)
    return vae.decode(params["vae"], configs["vae"], latents)


def _mousai(
    params: dict[str, Params], configs: Configs, ids: Array, mask: Array, controls: Controls
) -> Float[Array, " B T *C"]:
    system = Mousai(params, configs, {}, NO_TOKENIZER)
    program = _program(system)
    latents = system.latents(program, _words(params, configs, ids, mask), controls)
    return mousai.decode(params["dmae"], configs["dmae"], program, controls, latents)


def _program(system: TextDiffusion) -> Program:
    """The default settings."""
    return system.program(Request(prompt="any", seconds=system.window_seconds))


def _words(params: dict[str, Params], configs: Configs, ids: Array, mask: Array) -> WordPieces:
    """The outputs of the text tower."""
    pieces = text_tower.encode_pieces(params["mulan"]["text"]["encoder"], configs["mulan"].text, ids, mask)
    return WordPieces(pieces, mask)
