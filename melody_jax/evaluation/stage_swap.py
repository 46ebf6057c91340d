"""The cascade, entered one stage later each time with ground truth, so that a loss can be located:

    truth    the composed piece itself, rendered
    vae      the latents of the truth, decoded
    dpd      its semantic and prefix tokens, through the diffusion and the decoder
    lm       its MuLan prefix tokens, through the language model and all later stages
    text     its prompt, through the whole cascade: what a user hears
    shuffled the clips of `text`, each judged against the prompt of another group

`melody diagnose` is the command for it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax.evaluation.sound import Sound
from melody_jax.models import mulan, tokenizer, vae
from melody_jax.models.functional import Params
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.item_controls import item_keys
from melody_jax.sampling.request import make_requests
from melody_jax.sampling.settings import SamplingSettings, shared_settings


def swap_stages(
    melody: Melody,
    waves: np.ndarray,
    texts: Sequence[str],
    settings: SamplingSettings,
) -> dict[str, np.ndarray]:
    """Clips (B, T) or (B, T, 2) for "vae", "dpd", "lm" and "text".

    Args:
        melody: cascade that also holds the "tokenizer"; see `sampling.cascade.load(..., networks=...)`.
        waves: true clips (B, T) or (B, T, 2) of one window each, in the model's format, as all clips are returned.
        texts: their prompts.
        settings: how the networks sample; clip i has its seed plus i.
    """
    params = melody.params
    configs = melody.configs
    request_settings = shared_settings(settings) | {"seconds": melody.window_seconds}
    (batch,) = melody.plan(make_requests(texts, request_settings))
    mono = np.stack([Sound(wave, melody.audio_format).to() for wave in waves])
    prefix, tokens, latents = _features(params, tuple(configs.items()), jnp.asarray(mono), jnp.asarray(waves))
    encoded = melody.prompt_encoder.encode_requests(batch.requests)
    controls = melody.controls_at(batch, encoded)([0.0] * len(texts))._replace(prefix_tokens=prefix)
    keys = item_keys(controls)

    def decode(latents: jax.Array) -> np.ndarray:
        return np.asarray(windows.latents_to_wave(params["vae"], configs["vae"], latents))

    diffuse = partial(_tokens_to_latents, params["dpd"], batch.config, controls)
    lm_tokens = _prefix_to_tokens(params["lm"], batch.config, controls, keys)
    return {
        "vae": decode(latents),
        "dpd": decode(diffuse(tokens, keys)),
        "lm": decode(diffuse(lm_tokens, keys)),
        "text": np.stack(melody.run(batch.requests)),
    }


_tokens_to_latents = partial(jax.jit, static_argnums=1)(windows.tokens_to_latents)
_prefix_to_tokens = partial(jax.jit, static_argnums=1)(windows.prefix_to_tokens)


@partial(jax.jit, static_argnums=1)
def _features(
    params: dict[str, Params], configs: tuple[tuple[str, Any], ...], mono: jax.Array, waves: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prefix tokens, semantic tokens and latents of true clips in the VAE's format; `mono` are they in 24 kHz mono."""
    config = dict(configs)
    embedding = mulan.embed_music(params["mulan"], config["mulan"], mono)
    prefix = mulan.quantise(params["mulan"], config["mulan"], embedding)
    semantic_tokens = tokenizer.tokenize(params["tokenizer"], config["tokenizer"], mono)
    return prefix, semantic_tokens, vae.encode(params["vae"], config["vae"], waves)
