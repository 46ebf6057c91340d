"""Prompt to a window of latents in one jitted function, latents to waveform in another (paper sections 3.2 and 3.3).

Music longer than a window is made a chunk at a time (`next_window`, the paper's algorithm 2). Everything random comes
from one key per item, so an item does not depend on what else is in its batch.

B batch, P prefix levels, U semantic tokens, L latent frames, M chunks of a window, D latent channels, T samples.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from melody_jax import diffusion
from melody_jax.errors import UserError
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
    literal_chunks: bool = False
    """Moves on by ceil(U / M) tokens a chunk, as printed, although a chunk's latents may be fewer (Q4)."""

    @property
    def branches(self) -> int:
        """Passes of the diffusion a step: two if it is guided, but one if it takes the guidance scale as an input."""
        return 2 if self.guided and not self.dpd.guidance_range else 1

    @property
    def tokens(self) -> int:
        """Semantic tokens in a window, U."""
        return self.dpd.frames // self.dpd.frames_per_token

    @property
    def chunk_frames(self) -> int:
        """Latent frames in one of the M chunks of a window. Raises `UserError` if they have no equal length."""
        if self.dpd.frames % self.dpd.chunks:
            raise UserError(f"{self.dpd.frames} frames do not divide into {self.dpd.chunks} chunks: no continuation")
        return self.dpd.frames // self.dpd.chunks

    def chunk_tokens(self, number: int) -> int:
        """Tokens by which the window moves on for the chunk `number` = 1, 2, ... after it.

        Where U / M is no whole number, 62 and 63 take turns (paper's size), so that tokens and latents stay together.
        """
        tokens, chunks = self.tokens, self.dpd.chunks
        if self.literal_chunks:
            return -(-tokens // chunks)
        return number * tokens // chunks - (number - 1) * tokens // chunks


class Window(NamedTuple):
    """What one window of music is made of."""

    prefix_tokens: jax.Array
    """(B, P)."""
    semantic_tokens: jax.Array
    """(B, U)."""
    latents: jax.Array
    """(B, L, D)."""


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
    given: jax.Array | None = None,
) -> jax.Array:
    """Prefix tokens (B, P) -> semantic tokens int32 (B, U), U = one window of the DPD, sampled by the LM.

    The first ones are `given` (B, G), if they are.
    """
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
        given=given,
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
    context: jax.Array | None = None,
) -> jax.Array:
    """Semantic tokens (B, U) -> latents (B, L, D) by angular DDIM with classifier-free guidance (sections 3.3-3.5).

    The first ones are `context` (B, C, D), if it is given, and stay as they are to the bit. Both branches run in one
    doubled batch: the first half sees the tokens, the second half is the null branch.
    """
    batch = semantic_tokens.shape[0]
    branches = config.branches

    def velocity(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        noisy, angle = jnp.tile(noisy, (branches, 1, 1)), jnp.tile(angle, (branches, 1))
        scale = guidance_scale if config.dpd.guidance_range else None
        predicted = dpd.velocity(params, config.dpd, noisy, angle, semantic_tokens, batch, prefix_tokens, scale)
        return diffusion.guide(predicted[:batch], predicted[batch:], guidance_scale) if branches == 2 else predicted

    start, known = initial_noise(keys, config.dpd.frames, config.dpd.latent_dim), 0
    if context is not None:
        known = context.shape[1]
        start = jnp.concatenate([context, start[:, known:]], axis=1)
    is_new = jnp.arange(config.dpd.frames) >= known
    return diffusion.sample(velocity, start, diffusion.omegas(config.schedule, config.steps), is_new)


@partial(jax.jit, static_argnames="config")
def first_window(
    params: dict[str, Params],
    config: SamplerConfig,
    ids: jax.Array,
    mask: jax.Array,
    seeds: jax.Array,
    temperature: jax.Array,
    lm_guidance_scale: jax.Array,
    guidance_scale: jax.Array,
) -> Window:
    """The whole sampler: text token ids and mask (B, N), seeds int32 (B,) -> the first window.

    `params` holds the parameters of "mulan", "lm" and "dpd".
    """
    keys = item_keys(seeds)
    prefix = prompt_to_prefix(params["mulan"], config.mulan, ids, mask)
    tokens = prefix_to_tokens(params["lm"], config, prefix, keys, temperature, lm_guidance_scale)
    return Window(prefix, tokens, tokens_to_latents(params["dpd"], config, prefix, tokens, keys, guidance_scale))


@partial(jax.jit, static_argnames=("config", "moved"))
def next_window(
    params: dict[str, Params],
    config: SamplerConfig,
    window: Window,
    moved: int,
    number: jax.Array,
    seeds: jax.Array,
    temperature: jax.Array,
    lm_guidance_scale: jax.Array,
    guidance_scale: jax.Array,
) -> Window:
    """The window one chunk later (section 3.5, algorithm 2): its last chunk is new, what comes before stays.

    moved: tokens by which it moves on, `config.chunk_tokens(number)`; number: which chunk after the first window, from
    1, int32. Only the new chunk turns, where the paper's text turns the whole window (Q3).
    """
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1 + number))(item_keys(seeds))  # 0 and 1: the first window's
    prefix, given, context = window.prefix_tokens, window.semantic_tokens[:, moved:], window.latents
    tokens = prefix_to_tokens(params["lm"], config, prefix, keys, temperature, lm_guidance_scale, given)
    context = context[:, config.chunk_frames :]
    return Window(
        prefix, tokens, tokens_to_latents(params["dpd"], config, prefix, tokens, keys, guidance_scale, context)
    )


@partial(jax.jit, static_argnames="config")
def latents_to_wave(params: Params, config: VAEConfig, latents: jax.Array) -> jax.Array:
    """The decoder: latents (B, L, D) -> waveform float32 (B, T)."""
    return vae.decode(params, config, latents)
