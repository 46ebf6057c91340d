"""Previews of a run: held-out items through the averaged weights, as sound and spectrograms.

  vae   the original and its reconstruction
  dpd   the original's latents, and latents sampled from its semantic tokens in 10 unguided steps, both decoded
  lm    semantic tokens sampled from the original's prefix, diffused and decoded

`dpd` needs a released `vae` in `--data.networks`, `lm` also a `dpd`. MuLan and the tokenizer have no previews.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from melody_jax import audio, diffusion, loudness, release, release_folder, spectral
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.config import TrainConfig
from melody_jax.errors import UserError
from melody_jax.models import decoding, denoiser, vae
from melody_jax.models.functional import Params
from melody_jax.sharding import mesh_context, place_batch
from melody_jax.training.lora import merge
from melody_jax.training.stage import Batch
from melody_jax.training.state import TrainState

STEPS = 10
REQUIRED = {"vae": (), "dpd": ("vae",), "lm": ("dpd", "vae")}
"""Stage -> released networks that its preview uses."""
Sounds = dict[str, jax.Array]
Previews = dict[str, tuple[np.ndarray, int, np.ndarray]]


def make_preview(
    config: TrainConfig, held_out: Sequence[Batch], mesh: Mesh
) -> Callable[[TrainState], Previews] | None:
    """state -> {"preview/<name>/<item>": (audio (T,) or (T, C), its sample rate, log-mel image (80, F) in [0, 1])}.

    None if `watch.preview_every` is 0.

    Raises:
        UserError: the stage has no previews, or a network that it needs is not in `config.data.networks`.
    """
    stage: Any = config.stage
    if not config.watch.preview_every:
        return None
    if stage.name not in REQUIRED:
        raise UserError(f"watch.preview_every: {stage.name} has no previews; only {', '.join(REQUIRED)} have")
    if not held_out:
        raise UserError("watch.preview_every: there is no held-out batch; raise eval_batches")
    networks = {name: _network(config, name) for name in REQUIRED[stage.name]}
    render = partial({"vae": _reconstruct, "dpd": _diffuse, "lm": _generate}[stage.name], stage.model)
    models = {name: model for name, (_, model, _) in networks.items()}
    weights = {name: params for name, (params, _, _) in networks.items()}
    items = min(config.watch.preview_items, config.data.batch_size)

    def render_items(params: Params, ema: Params, weights: Params, batch: Batch) -> Sounds:
        model = merge(params["base"], ema, config.lora) if "base" in params else ema
        batch = jax.tree.map(lambda rows: rows[:items], batch)
        return render(model, models, weights, batch, jax.random.key(config.seed))

    stored = (stage.model if stage.name == "vae" else models["vae"]).audio_format
    rate = stored.sample_rate
    compiled = jax.jit(
        render_items, out_shardings=NamedSharding(mesh, PartitionSpec())
    )  # one process shows it

    def preview(state: TrainState) -> Previews:
        with mesh_context(mesh):
            sounds = jax.device_get(
                compiled(state.params, state.ema, weights, place_batch(held_out[0], mesh))
            )
        return {
            f"preview/{name}/{i}": (loudness.peak_limit(wave, sample_rate=rate), rate, _image(wave, stored))
            for name, waves in sounds.items()
            for i, wave in enumerate(waves)
        }

    return preview


def _network(config: TrainConfig, name: str) -> tuple[Params, Any, dict[str, str]]:
    folder = config.data.networks
    if not folder or not release_folder.has_network(folder, name):
        raise UserError(
            f"watch.preview_every: previews of {config.stage.name} need a released {name}; --data.networks "
            f"{folder or 'is empty'}{' has none' if folder else ''}"
        )
    return release.load_network(folder, name)


def _reconstruct(config: Any, model: Params, _: Any, __: Any, batch: Batch, ___: jax.Array) -> Sounds:
    original = batch["audio"]
    return {
        "original": original,
        "reconstruction": vae.decode(model, config, vae.encode(model, config, original)),
    }


def _diffuse(config: Any, model: Params, models: Any, weights: Any, batch: Batch, key: jax.Array) -> Sounds:
    latents = _sample(config, model, batch, key)
    decode = partial(vae.decode, weights["vae"], models["vae"])
    return {"original": decode(batch["latents"]), "diffused": decode(latents)}


def _generate(config: Any, model: Params, models: Any, weights: Any, batch: Batch, key: jax.Array) -> Sounds:
    prefix = batch["prefix_tokens"][:, : config.given_length]
    window = models["dpd"].frames // models["dpd"].frames_per_token
    tokens = decoding.generate(model, config, prefix, jax.random.split(key, len(prefix)), window).tokens
    latents = _sample(models["dpd"], weights["dpd"], batch | {"semantic_tokens": tokens}, key)
    return {"generated": vae.decode(weights["vae"], models["vae"], latents)}


def _sample(config: Any, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
    tokens = batch["semantic_tokens"]
    prefix = batch["prefix_tokens"]
    noise = jax.random.normal(
        key, (len(tokens), tokens.shape[1] * config.frames_per_token, config.latent_dim)
    )

    def velocity(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        return denoiser.velocity(params, config, noisy, angle, tokens, len(tokens), prefix)

    return diffusion.sample(
        velocity, noise, diffusion.angle_steps("paper", STEPS), jnp.ones(noise.shape[1], bool)
    )


def _image(wave: np.ndarray, stored: AudioFormat) -> np.ndarray:
    """Log-mel magnitudes down to 80 dB below the maximum, low frequencies at the bottom."""
    wave = audio.convert(wave, stored, DEFAULT_FORMAT)
    levels = np.asarray(spectral.log_mel(jnp.asarray(wave)[None]))[0].T[::-1]
    return np.clip(1 + (levels - levels.max()) / np.log(1e4), 0, 1)
