"""Sources: the user's own music, encoded into the semantic tokens and latents that an edit starts from.

n tokens of the clip, U tokens of a window, L latents of a window, D latent channels, N windows, T samples.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from melody_jax import audio
from melody_jax.audio import TOKEN_SAMPLES
from melody_jax.data.features import stitch_windows, window_starts
from melody_jax.errors import UserError
from melody_jax.models import tokenizer, vae
from melody_jax.models.functional import Params
from melody_jax.sampling.edit import EditedClip
from melody_jax.sampling.plan import Configs, EditPlan
from melody_jax.sampling.prompts import read_audio
from melody_jax.sampling.request import Request


def read_sources(requests: Sequence[Request], configs: Configs) -> dict[Request, np.ndarray]:
    """The source (T,) of each request that has one.

    Raises:
        UserError: a source cannot be read, or no tokenizer was loaded.
    """
    with_source = [request for request in requests if request.source is not None]
    if with_source and "tokenizer" not in configs:
        raise UserError(
            "the tokenizer was not loaded; a source needs it: load(..., networks=(..., 'tokenizer'))"
        )
    return {request: read_audio(request.source, "a source") for request in with_source}


def analyse_source(
    samples: Float32[np.ndarray, " T"], plan: EditPlan, params: dict[str, Params], configs: Configs
) -> EditedClip:
    """The clip before its first window is filled: the source's tokens and latents, zero beyond the source.

    The networks process the source at the level of their training music. It is mirrored to the end of its
    last window, because the networks look ahead and would encode silence there as part of the music.
    """
    gain = level_gain(samples)
    sound = samples * gain
    encoded_tokens = min(plan.tokens, max(plan.window, -(-len(sound) // TOKEN_SAMPLES)))
    padded = np.pad(sound, (0, encoded_tokens * TOKEN_SAMPLES - len(sound)), mode="symmetric")
    starts = window_starts(encoded_tokens, plan.window, plan.window // 2)
    network_params = {name: params[name] for name in ("tokenizer", "vae")}
    network_configs = (configs["tokenizer"], configs["vae"])
    tokens = []
    latents = []
    for start in starts:
        window = padded[None, start * TOKEN_SAMPLES : (start + plan.window) * TOKEN_SAMPLES]
        window_tokens, window_latents = encode_windows(network_params, network_configs, window)
        tokens.append(np.asarray(window_tokens[0]))
        latents.append(np.asarray(window_latents[0]))
    missing = plan.tokens - encoded_tokens
    missing_latents = missing * configs["dpd"].frames_per_token
    stitched_tokens = stitch_windows(np.stack(tokens), starts, encoded_tokens)
    stitched_latents = stitch_windows(np.stack(latents), starts, encoded_tokens)
    return EditedClip(
        plan=plan,
        samples=samples,
        gain=gain,
        semantic_tokens=np.pad(stitched_tokens, (0, missing)),
        latents=np.pad(stitched_latents, ((0, missing_latents), (0, 0))),
    )


def level_gain(samples: Float32[np.ndarray, " T"]) -> float:
    """The factor that brings audio to the level of the training music; 1 for silence."""
    peak = np.abs(samples).max()
    return float(np.abs(audio.loudness_normalise(samples)).max() / peak) if peak > 0 else 1.0


@partial(jax.jit, static_argnames="configs")
def encode_windows(
    params: dict[str, Params], configs: tuple[Any, Any], windows: Float[Array | np.ndarray, "N T"]
) -> tuple[Int[Array, "N U"], Float[Array, "N L D"]]:
    """Semantic tokens and latents of windows of audio, by the `configs` of tokenizer and VAE."""

    def encode(window: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = tokenizer.tokenize(params["tokenizer"], configs[0], window[None])
        return tokens[0], vae.encode(params["vae"], configs[1], window[None])[0]

    return jax.lax.map(encode, windows)
