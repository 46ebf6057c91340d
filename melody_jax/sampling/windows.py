"""Prefix tokens to windows of latents in jitted functions, latents to waveform in another (paper sections 3.2 and 3.3).

Music longer than a window is made a chunk at a time (`next_window`, the paper's algorithm 2). Everything random comes
from one key per item, and every setting that is a number is an item's own, so an item does not depend on what else is
in its batch.

B batch, P prefix levels, U semantic tokens, L latent frames, M chunks of a window, D latent channels, T samples.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from melody_jax import diffusion
from melody_jax.errors import UserError
from melody_jax.models import decoding, denoiser, lm, vae
from melody_jax.models.decoding import CANDIDATES
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.functional import Params
from melody_jax.models.lm import LMConfig
from melody_jax.models.vae import VAEConfig


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What is compiled into the sampler; a new value of any field compiles a new program."""

    lm: LMConfig
    dpd: DenoiserConfig
    steps: int = 5
    """Diffusion steps, >= 1."""
    schedule: str = "paper"
    """Angle schedule, see `diffusion.angle_steps`."""
    solver: str = "ddim"
    """See `diffusion.SOLVERS`."""
    start: float = diffusion.HALF_PI
    """Angle that the diffusion starts from, radians; below pi/2 it varies the latents that are there."""
    guided: bool = True
    """Whether the diffusion is guided by a null branch; without, as where it takes the guidance scale as an input, it
    costs half."""
    lm_guided: bool = False
    """The same for the LM."""
    candidates: int = CANDIDATES
    """The most that `Controls.top_k` of an item can be."""
    literal_chunks: bool = False
    """Moves on by ceil(U / M) tokens a chunk, as printed, although a chunk's latents may be fewer (Q4)."""

    @property
    def tokens(self) -> int:
        """Semantic tokens in a window, U."""
        return self.dpd.frames // self.dpd.frames_per_token

    @property
    def chunk_frames(self) -> int:
        """Latent frames in one of the M chunks of a window. Raises `UserError` if they have no equal length."""
        if self.dpd.frames % self.dpd.chunks:
            raise UserError(
                f"{self.dpd.frames} frames do not divide into {self.dpd.chunks} chunks: no continuation"
            )
        return self.dpd.frames // self.dpd.chunks

    def chunk_tokens(self, number: int) -> int:
        """Tokens by which the window moves on for the chunk `number` = 1, 2, ... after it.

        Where U / M is no whole number, 62 and 63 take turns (paper's size), so that tokens and latents stay together.
        """
        tokens, chunks = self.tokens, self.dpd.chunks
        if self.literal_chunks:
            return -(-tokens // chunks)
        return number * tokens // chunks - (number - 1) * tokens // chunks


class Controls(NamedTuple):
    """What each item of a batch is asked for."""

    prefix_tokens: jax.Array
    """int32 (B, P)."""
    negative_prefix_tokens: jax.Array
    """int32 (B, P): what the guided LM is led away from; -1 is the learned null."""
    seeds: jax.Array
    """int32 (B,)."""
    candidate: jax.Array
    """int32 (B,): which of several clips of one seed."""
    temperature: jax.Array
    """float32 (B,), >= 0, of the LM."""
    top_k: jax.Array
    """int32 (B,), at least 1, of the LM."""
    top_p: jax.Array
    """float32 (B,) in (0, 1], of the LM."""
    lm_guidance_scale: jax.Array
    """float32 (B,); looked at if `SamplerConfig.lm_guided`."""
    guidance_scale: jax.Array
    """float32 (B,); looked at if `SamplerConfig.guided`, and by a distilled diffusion."""


class Window(NamedTuple):
    """What one window of music is made of."""

    semantic_tokens: jax.Array
    """(B, U)."""
    latents: jax.Array
    """(B, L, D)."""


def item_keys(controls: Controls) -> jax.Array:
    """One Threefry key per item, of its seed and candidate: keys (B,)."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(jax.random.fold_in)(
        fold(jax.random.key(0, impl="threefry2x32"), controls.seeds), controls.candidate
    )


def _part_keys(keys: jax.Array, part: int | jax.Array) -> jax.Array:
    """The keys of one of the uses that an item has for its own: 0 tokens, 1 noise, 2 noise of later steps."""
    return jax.vmap(lambda key: jax.random.fold_in(key, part))(keys)


def _noise(keys: jax.Array, frames: int, channels: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, (frames, channels)))(keys)


def initial_noise(keys: jax.Array, frames: int, channels: int) -> jax.Array:
    """Standard normal latents (B, L, D), each item's from its own key."""
    return _noise(_part_keys(keys, 1), frames, channels)


def prefix_to_tokens(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    keys: jax.Array,
    given: jax.Array | None = None,
    known: jax.Array | None = None,
) -> jax.Array:
    """Semantic tokens int32 (B, U), U = one window of the DPD, sampled by the LM.

    The first ones are `given` (B, G), if they are; those `known` (B, U) elsewhere stay, -1 is one to draw.
    """
    return decoding.generate(
        params,
        config.lm,
        controls.prefix_tokens,
        _part_keys(keys, 0),
        config.tokens,
        temperature=controls.temperature,
        top_k=controls.top_k,
        top_p=controls.top_p,
        guidance_scale=controls.lm_guidance_scale if config.lm_guided else 1.0,
        given=given,
        negative_prefix_tokens=controls.negative_prefix_tokens,
        candidates=config.candidates,
        known=known,
    )


def tokens_to_latents(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    semantic_tokens: jax.Array,
    keys: jax.Array,
    context: jax.Array | None = None,
    is_new: jax.Array | None = None,
) -> jax.Array:
    """Semantic tokens (B, U) -> latents (B, L, D) by the config's solver with classifier-free guidance (3.3-3.5).

    Frames where `is_new` (L,) or (B, L) is False are those of `context` (B, L, D) and stay as they are to the bit; new
    ones start from noise, or from their `context` with noise to the angle `config.start`. Both
    branches of guidance run in one doubled batch: the first half sees the tokens, the second half is the null branch.
    """
    batch, frames, channels = semantic_tokens.shape[0], config.dpd.frames, config.dpd.latent_dim
    branches = 2 if config.guided else 1

    def velocity(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        noisy, angle = jnp.tile(noisy, (branches, 1, 1)), jnp.tile(angle, (branches, 1))
        prefix, scale = controls.prefix_tokens, controls.guidance_scale
        predicted = denoiser.velocity(params, config.dpd, noisy, angle, semantic_tokens, batch, prefix, scale)
        if not config.guided:
            return predicted
        return diffusion.guide(predicted[:batch], predicted[batch:], scale[:, None, None])

    def later_noise(step: jax.Array) -> jax.Array:
        return _noise(_part_keys(_part_keys(keys, 2), step), frames, channels)

    start = initial_noise(keys, frames, channels)
    if context is not None:
        assert is_new is not None, "context needs to be told from what is new"
        is_new = jnp.broadcast_to(is_new, (batch, frames))
        if config.start < diffusion.HALF_PI:
            start = diffusion.corrupt(context, start, config.start)[0]
        start = jnp.where(is_new[..., None], start, context)
    angle_steps = diffusion.angle_steps(config.schedule, config.steps, config.start)
    return diffusion.sample(velocity, start, angle_steps, is_new, config.solver, later_noise)


def per_device(function: Callable[..., Any], mesh: Mesh | None, replicated: int = 1) -> Callable[..., Any]:
    """`function` of batches, each device of the mesh working on its own items; nothing is sent. None: as it is.

    The first `replicated` arguments belong to no item: every device has all of them. The number of items must be a
    multiple of the number of devices.
    """
    if mesh is None:
        return function
    items = PartitionSpec(mesh.axis_names)

    def spread(*arguments: Any) -> Any:
        specs = (PartitionSpec(),) * replicated + (items,) * (len(arguments) - replicated)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=items, check_vma=False)(
            *arguments
        )

    return spread


@partial(jax.jit, static_argnames=("config", "mesh"))
def first_window(
    params: dict[str, Params], config: SamplerConfig, controls: Controls, mesh: Mesh | None = None
) -> Window:
    """The first window. `params` holds the parameters of "lm" and "dpd"; mesh: spreads the items (`per_device`)."""

    def make(params: dict[str, Params], controls: Controls) -> Window:
        keys = item_keys(controls)
        tokens = prefix_to_tokens(params["lm"], config, controls, keys)
        return Window(tokens, tokens_to_latents(params["dpd"], config, controls, tokens, keys))

    return per_device(make, mesh)(params, controls)


@partial(jax.jit, static_argnames=("config", "moved", "mesh"))
def next_window(
    params: dict[str, Params],
    config: SamplerConfig,
    controls: Controls,
    window: Window,
    moved: int,
    number: jax.Array,
    mesh: Mesh | None = None,
) -> Window:
    """The window one chunk later (section 3.5, algorithm 2): its last chunk is new, what comes before stays.

    moved: tokens by which it moves on, `config.chunk_tokens(number)`; number: which chunk after the first window, from
    1, int32. Only the new chunk turns, where the paper's text turns the whole window (Q3).
    """

    def make(params: dict[str, Params], number: jax.Array, controls: Controls, window: Window) -> Window:
        keys = _part_keys(item_keys(controls), 2 + number)  # below are the first window's own
        tokens = prefix_to_tokens(params["lm"], config, controls, keys, window.semantic_tokens[:, moved:])
        context = jnp.roll(window.latents, -config.chunk_frames, axis=1)
        is_new = jnp.arange(config.dpd.frames) >= config.dpd.frames - config.chunk_frames
        return Window(
            tokens, tokens_to_latents(params["dpd"], config, controls, tokens, keys, context, is_new)
        )

    return per_device(make, mesh, replicated=2)(params, number, controls, window)


@partial(jax.jit, static_argnames=("config", "given", "draws"))
def fill_tokens(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    semantic_tokens: jax.Array,
    is_new: jax.Array,
    number: jax.Array,
    given: int = 0,
    draws: int = 1,
) -> jax.Array:
    """A window of `semantic_tokens` (B, U) with those where `is_new` (B, U) written by the LM; the others stay.

    number: which window of a piece this is, int32, from 0: each has draws of its own. given: so many first tokens of
    every item are known, which saves the LM that many steps. draws: the LM writes so many fillings, and the one that
    makes the tokens after them likeliest is taken (Q23).
    """
    batch, known = len(is_new), jnp.where(is_new, -1, semantic_tokens)
    many, known = jax.tree.map(lambda rows: jnp.repeat(rows, draws, axis=0), (controls, known))
    keys = _part_keys(item_keys(many), 2 + number)
    keys = jax.vmap(jax.random.fold_in)(keys, jnp.tile(jnp.arange(draws), batch))
    tokens = prefix_to_tokens(params, config, many, keys, known[:, :given], known)
    if draws == 1:
        return tokens
    scores = jax.nn.log_softmax(lm.logits(params, config.lm, many.prefix_tokens, tokens))
    likelihood = jnp.take_along_axis(scores, tokens[..., None], axis=2)[..., 0]
    after = (jnp.cumsum(known < 0, axis=1) > 0) & (known >= 0)
    best = jnp.argmax((likelihood * after).sum(axis=1).reshape(batch, draws), axis=1)
    return tokens.reshape(batch, draws, -1)[jnp.arange(batch), best]


@partial(jax.jit, static_argnames="config")
def fill_latents(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    window: Window,
    is_new: jax.Array,
    number: jax.Array,
) -> jax.Array:
    """The latents of `window` with those where `is_new` (B, L) made from its tokens; the others stay to the bit.

    number: as in `fill_tokens`.
    """
    keys = _part_keys(item_keys(controls), 2 + number)
    return tokens_to_latents(params, config, controls, window.semantic_tokens, keys, window.latents, is_new)


def windows(
    params: dict[str, Params],
    config: SamplerConfig,
    controls_at: Callable[[int], Controls],
    mesh: Mesh | None = None,
) -> Iterator[jax.Array]:
    """New latents (B, n, D) without end: those of the first window, then of one chunk after the other.

    controls_at(number): what is asked for in chunk `number`; 0 is the first window.
    """
    window = first_window(params, config, controls_at(0), mesh)
    yield window.latents
    for number in itertools.count(1):
        moved = config.chunk_tokens(number)
        window = next_window(params, config, controls_at(number), window, moved, jnp.int32(number), mesh)
        yield window.latents[:, -config.chunk_frames :]


@partial(jax.jit, static_argnames=("config", "mesh"))
def latents_to_wave(
    params: Params,
    config: VAEConfig,
    latents: jax.Array,
    first: jax.typing.ArrayLike = 0,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The decoder: latents (B, L, D), of which the first is number `first` of its piece -> waveform float32 (B, T)."""

    def make(params: Params, first: jax.Array, latents: jax.Array) -> jax.Array:
        return vae.decode(params, config, latents, first)

    return per_device(make, mesh, replicated=2)(params, first, latents)
