"""The cascade, entered one stage later each time with ground truth, so that a loss can be located:

    truth    the composed piece itself, rendered
    vae      the latents of the truth, decoded
    dpd      its semantic and prefix tokens, through the diffusion and the decoder
    lm       its MuLan prefix tokens, through the language model and all later stages
    text     its prompt, through the whole cascade: what a user hears
    shuffled the clips of `text`, each judged against the prompt of another group

`melody diagnose` is the command for it.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import audio
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.models import mulan, tokenizer, vae
from melody_jax.models.functional import Params
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.request import make_requests
from melody_jax.sampling.settings import SamplingSettings, shared_settings


def swap_stages(
    melody: Melody,
    waves: np.ndarray,
    texts: Sequence[str],
    settings: SamplingSettings,
) -> dict[str, np.ndarray]:
    """Clips (B, T) for "vae", "dpd", "lm" and "text".

    Args:
        melody: cascade that also holds the "tokenizer"; see `sampling.cascade.load(..., networks=...)`.
        waves: true clips (B, T) of one window each, at 24 kHz. All clips are returned in that format.
        texts: their prompts.
        settings: how the networks sample; clip i has its seed plus i.
    """
    params = melody.params
    configs = melody.configs
    request_settings = shared_settings(settings) | {"seconds": melody.window_seconds}
    (batch,) = melody.plan(make_requests(texts, request_settings))
    stored = melody.audio_format
    sources = np.stack([audio.convert(wave, DEFAULT_FORMAT, stored) for wave in waves])
    prefix, tokens, latents = _features(
        params, tuple(configs.items()), jnp.asarray(waves), jnp.asarray(sources)
    )
    encoded = melody.prompt_encoder.encode_requests(batch.requests)
    controls = melody.controls_at(batch, encoded)([0.0] * len(texts))._replace(prefix_tokens=prefix)
    keys = windows.item_keys(controls)

    def decode(latents: jax.Array) -> np.ndarray:
        return to_default_format(np.asarray(windows.latents_to_wave(params["vae"], configs["vae"], latents)))

    def to_default_format(clips: Iterable[np.ndarray]) -> np.ndarray:
        return np.stack([audio.convert(clip, stored, DEFAULT_FORMAT) for clip in clips])

    diffuse = partial(_tokens_to_latents, params["dpd"], batch.config, controls)
    lm_tokens = _prefix_to_tokens(params["lm"], batch.config, controls, keys)
    return {
        "vae": decode(latents),
        "dpd": decode(diffuse(tokens, keys)),
        "lm": decode(diffuse(lm_tokens, keys)),
        "text": to_default_format(melody.run(batch.requests)),
    }


_tokens_to_latents = partial(jax.jit, static_argnums=1)(windows.tokens_to_latents)
_prefix_to_tokens = partial(jax.jit, static_argnums=1)(windows.prefix_to_tokens)


@partial(jax.jit, static_argnums=1)
def _features(
    params: dict[str, Params], configs: tuple[tuple[str, Any], ...], waves: jax.Array, sources: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prefix tokens, semantic tokens and latents of true clips (B, T); `sources` are these in the VAE's format."""
    config = dict(configs)
    embedding = mulan.embed_music(params["mulan"], config["mulan"], waves)
    prefix = mulan.quantise(params["mulan"], config["mulan"], embedding)
    semantic_tokens = tokenizer.tokenize(params["tokenizer"], config["tokenizer"], waves)
    return prefix, semantic_tokens, vae.encode(params["vae"], config["vae"], sources)
