"""Prompt to latents in one jitted function, latents to waveform in another (paper sections 3.2 and 3.3).

B batch, P prefix levels, U semantic tokens, L latent frames, D latent channels, T samples.
Everything random comes from one key per item, so an item does not depend on what else is in its batch.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from melody_jax import diffusion
from melody_jax.models import dpd, lm, mulan, vae
from melody_jax.models.dpd import DPDConfig
from melody_jax.models.functional import Params
from melody_jax.models.lm import LMConfig
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.vae import VAEConfig


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What is compiled into the sampler; a new value of any field compiles a new program."""

    mulan: MuLanConfig
    lm: LMConfig
    dpd: DPDConfig
    steps: int = 5
    """Diffusion steps, >= 1."""
    schedule: str = "paper"
    """Angle schedule, see `diffusion.omegas`."""
    guided: bool = True
    """Whether the diffusion is guided; if not, its null branch is left out, which halves the cost."""
    lm_guided: bool = False
    """The same for the LM."""
    top_k: int = 250
    """Semantic tokens kept at each step of the LM, the most likely ones; 1 is greedy."""

    @property
    def tokens(self) -> int:
        """Semantic tokens in a window, U."""
        return self.dpd.frames // self.dpd.frames_per_token


def item_keys(seeds: jax.Array) -> jax.Array:
    """One Threefry key per seed: int32 (B,) -> keys (B,)."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(0, impl="threefry2x32")))(seeds)


def prompt_to_prefix(params: Params, config: MuLanConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Text token ids and mask (B, N) -> prefix tokens int32 (B, P)."""
    return mulan.quantise(params, config, mulan.embed_text(params, config, ids, mask), modality="text")


def prefix_to_tokens(
    params: Params,
    config: SamplerConfig,
    prefix_tokens: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    guidance_scale: jax.Array,
) -> jax.Array:
    """Prefix tokens (B, P) -> semantic tokens int32 (B, U), U = one window of the DPD, sampled by the LM."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    return lm.generate(
        params,
        config.lm,
        prefix_tokens,
        keys,
        config.tokens,
        temperature=temperature,
        top_k=config.top_k,
        guidance_scale=guidance_scale if config.lm_guided else 1.0,
    )


def initial_noise(keys: jax.Array, frames: int, channels: int) -> jax.Array:
    """Standard normal latents (B, L, D), each item's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), (frames, channels)))(keys)


def tokens_to_latents(
    params: Params,
    config: SamplerConfig,
    prefix_tokens: jax.Array,
    semantic_tokens: jax.Array,
    keys: jax.Array,
    guidance_scale: jax.Array,
) -> jax.Array:
    """Semantic tokens (B, U) -> latents (B, L, D) by angular DDIM with classifier-free guidance (sections 3.3-3.5).

    Both branches run in one doubled batch: the first half sees the tokens, the second half is the null branch.
    """
    batch = semantic_tokens.shape[0]
    branches = 2 if config.guided else 1

    def velocity(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        noisy, angle = jnp.tile(noisy, (branches, 1, 1)), jnp.tile(angle, (branches, 1))
        predicted = dpd.velocity(params, config.dpd, noisy, angle, semantic_tokens, batch, prefix_tokens)
        return diffusion.guide(predicted[:batch], predicted[batch:], guidance_scale) if config.guided else predicted

    noise = initial_noise(keys, config.dpd.frames, config.dpd.latent_dim)
    return diffusion.sample(velocity, noise, diffusion.omegas(config.schedule, config.steps))


@partial(jax.jit, static_argnames="config")
def prompt_to_latents(
    params: dict[str, Params],
    config: SamplerConfig,
    ids: jax.Array,
    mask: jax.Array,
    seeds: jax.Array,
    temperature: jax.Array,
    lm_guidance_scale: jax.Array,
    guidance_scale: jax.Array,
) -> jax.Array:
    """The whole sampler: text token ids and mask (B, N), seeds int32 (B,) -> latents (B, L, D).

    `params` holds the parameters of "mulan", "lm" and "dpd".
    """
    keys = item_keys(seeds)
    prefix_tokens = prompt_to_prefix(params["mulan"], config.mulan, ids, mask)
    semantic_tokens = prefix_to_tokens(params["lm"], config, prefix_tokens, keys, temperature, lm_guidance_scale)
    return tokens_to_latents(params["dpd"], config, prefix_tokens, semantic_tokens, keys, guidance_scale)


@partial(jax.jit, static_argnames="config")
def latents_to_wave(params: Params, config: VAEConfig, latents: jax.Array) -> jax.Array:
    """The decoder: latents (B, L, D) -> waveform float32 (B, T)."""
    return vae.decode(params, config, latents)
