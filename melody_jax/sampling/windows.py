"""Jitted functions from prefix tokens to windows of semantic tokens and latents, and from latents to waveform.

A window is the longest stretch that the networks process at a time (MeLoDy, arXiv 2305.15719, sections 3.1
and 4.1). Music longer than a window is made a chunk at a time (`next_window`, the paper's algorithm 2). All
random numbers of an item derive from its own key, and every numeric setting is per item, so an item does not
depend on the other items of its batch.

B batch, P prefix levels, U semantic tokens, G tokens of a primer, L latent frames, M chunks per window, D
latent channels, T samples.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from melody_jax import diffusion, guidance
from melody_jax.errors import UserError
from melody_jax.models import decoding, denoiser, lm, vae
from melody_jax.models.decoding import CANDIDATES
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.functional import Params
from melody_jax.models.lm_config import LMConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.sampling.item_controls import Controls, fold_in, item_keys, normal
from melody_jax.sampling.settings import SamplingSettings

TOKENS, NOISE, LATER_NOISE = range(3)
"""Uses of an item's random key in a window."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Settings that are compiled into the sampler; a new value of any field compiles a new program."""

    lm: LMConfig
    dpd: DenoiserConfig
    steps: int = SamplingSettings.steps
    """Diffusion steps, at least 1."""
    schedule: str = SamplingSettings.schedule
    """Angle schedule, see `diffusion.angle_steps`."""
    solver: str = SamplingSettings.solver
    """See `diffusion.SOLVERS`."""
    start: float = diffusion.HALF_PI
    """Angle that the diffusion starts from, radians; below pi/2 it varies the latents of its context."""
    guided: bool = True
    """Whether the diffusion is guided by a null branch. Without it, sampling costs half. A
    distilled diffusion does not need it, because the guidance scale is one of its inputs."""
    keeps_tokens: bool = False
    """Whether the tokens are a source's, and guidance leads from them alone to them with the prompt: without this, a
    prompt hardly changes the instruments that the tokens imply."""
    lm_guided: bool = False
    """Whether the language model is guided by a null or negative prefix."""
    controlled: bool = False
    """Whether it is also guided towards its control tokens."""
    candidates: int = CANDIDATES
    """Upper bound of `Controls.top_k`."""
    literal_chunks: bool = False
    """Shifts the tokens by ceil(U / M) per chunk, as printed in algorithm 2, even where the latents shift by less."""

    @property
    def tokens(self) -> int:
        """Semantic tokens per window, U."""
        return self.dpd.frames // self.dpd.frames_per_token

    @property
    def chunk_frames(self) -> int:
        """Latent frames per chunk. Raises `UserError` if a window does not divide into M equal chunks."""
        if self.dpd.frames % self.dpd.chunks:
            raise UserError(
                f"{self.dpd.frames} frames do not divide into {self.dpd.chunks} chunks: no continuation"
            )
        return self.dpd.frames // self.dpd.chunks

    def chunk_tokens(self, number: int) -> int:
        """Tokens by which the window shifts for chunk `number` = 1, 2, ... after it.

        Where U / M is not an integer, the shift alternates (62 and 63 at the paper's size), so that tokens
        and latents stay aligned.
        """
        tokens = self.tokens
        chunks = self.dpd.chunks
        if self.literal_chunks:
            return -(-tokens // chunks)
        return number * tokens // chunks - (number - 1) * tokens // chunks


class Window(NamedTuple):
    """The content of one window of music."""

    semantic_tokens: Int[Array, "B U"]
    latents: Float[Array, "B L D"]


def initial_noise(keys: Key[Array, " B"], frames: int, channels: int) -> Float[Array, "B L D"]:
    """Standard normal latents, each item's from its own key."""
    return normal(fold_in(keys, NOISE), (frames, channels))


def prefix_to_tokens(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    keys: Key[Array, " B"],
    primer: Int[Array, "B G"] | None = None,
    fixed: Int[Array, "B U"] | None = None,
) -> Int32[Array, "B U"]:
    """The semantic tokens of one window, sampled by the language model.

    primer: tokens that the window begins with. fixed: tokens that stay; -1 where one is sampled.
    """
    return decoding.generate(
        params,
        config.lm,
        controls.prefix_tokens[:, : config.lm.given_length],
        fold_in(keys, TOKENS),
        config.tokens,
        temperature=controls.temperature,
        top_k=controls.top_k,
        top_p=controls.top_p,
        guidance_scale=controls.lm_guidance_scale if config.lm_guided else 1.0,
        control_scale=controls.control_scale if config.controlled else 1.0,
        primer=primer,
        negative_prefix_tokens=controls.negative_prefix_tokens[:, : config.lm.given_length],
        candidates=config.candidates,
        fixed=fixed,
    ).tokens


def tokens_to_latents(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    semantic_tokens: Int[Array, "B U"],
    keys: Key[Array, " B"],
    context: Float[Array, "B L D"] | None = None,
    is_new: Bool[Array, "*B L"] | None = None,
) -> Float[Array, "B L D"]:
    """The latents of a window, by solver and classifier-free guidance (MeLoDy, sections 4.1, 4.3 and 5.1).

    Frames where `is_new` (L,) or (B, L) is False are those of `context` and stay bit-identical. New frames
    start from noise, or from their context with noise added up to the angle `config.start`. Both branches of
    guidance run in one doubled batch: the first half sees the tokens, the second half is the null branch, or with
    `config.keeps_tokens` the one without the prompt.
    """
    assert context is None or is_new is not None, "context needs is_new"
    batch = semantic_tokens.shape[0]
    frames = config.dpd.frames
    channels = config.dpd.latent_dim
    is_new = jnp.broadcast_to(True if is_new is None else is_new, (batch, frames))
    scale = controls.guidance_scale

    condition = (semantic_tokens, batch, controls.prefix_tokens)
    if config.guided and config.keeps_tokens and config.dpd.prefix_conditioning:
        prefixes = jnp.concatenate([controls.prefix_tokens, jnp.full_like(controls.prefix_tokens, -1)])
        condition = (jnp.tile(semantic_tokens, (2, 1)), 2 * batch, prefixes)

    def evaluate(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        return denoiser.velocity(params, config.dpd, noisy, angle, *condition, scale)

    velocity = evaluate
    if config.guided:
        velocity = guidance.guided(evaluate, scale, controls.guidance_rescale, is_new)

    def later_noise(step: jax.Array) -> jax.Array:
        return normal(fold_in(fold_in(keys, LATER_NOISE), step), (frames, channels))

    start = initial_noise(keys, frames, channels)
    if context is not None:
        if config.start < diffusion.HALF_PI:
            start = diffusion.corrupt(context, start, config.start)[0]
        start = jnp.where(is_new[..., None], start, context)
    angle_steps = diffusion.angle_steps(config.schedule, config.steps, config.start)
    return diffusion.sample(velocity, start, angle_steps, is_new, config.solver, later_noise)


def per_device(function: Callable[..., Any], mesh: Mesh | None, replicated: int = 1) -> Callable[..., Any]:
    """`function` with its items split over the devices of the mesh; no mesh: `function` itself.

    The devices do not communicate. The first `replicated` arguments are not per item: every device has a
    copy. The number of items must be a multiple of the number of devices.
    """
    if mesh is None:
        return function
    items = PartitionSpec(mesh.axis_names)

    def sharded(*arguments: Any) -> Any:
        specs = (PartitionSpec(),) * replicated + (items,) * (len(arguments) - replicated)
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=items, check_vma=False)
        return mapped(*arguments)

    return sharded


@partial(jax.jit, static_argnames=("config", "mesh"))
def first_window(
    params: dict[str, Params], config: SamplerConfig, controls: Controls, mesh: Mesh | None = None
) -> Window:
    """The first window. `params` holds those of "lm" and "dpd"; `mesh` splits the items (`per_device`)."""

    def sample(params: dict[str, Params], controls: Controls) -> Window:
        keys = item_keys(controls)
        tokens = prefix_to_tokens(params["lm"], config, controls, keys)
        return Window(tokens, tokens_to_latents(params["dpd"], config, controls, tokens, keys))

    return per_device(sample, mesh)(params, controls)


@partial(jax.jit, static_argnames=("config", "shift", "mesh"))
def next_window(
    params: dict[str, Params],
    config: SamplerConfig,
    controls: Controls,
    window: Window,
    shift: int,
    number: Int[Array, ""],
    mesh: Mesh | None = None,
) -> Window:
    """The window one chunk later: its last chunk is new, the rest stays (MeLoDy, arXiv 2305.15719, section 4.3).

    shift: tokens by which the window shifts, `config.chunk_tokens(number)`. number: which chunk after the
    first window, from 1. Only the new chunk is denoised; the paper's text rotates the whole window.
    """

    def sample(params: dict[str, Params], number: jax.Array, controls: Controls, window: Window) -> Window:
        keys = fold_in(item_keys(controls), 2 + number)  # 0 and 1 are the first window's uses
        tokens = prefix_to_tokens(params["lm"], config, controls, keys, window.semantic_tokens[:, shift:])
        context = jnp.roll(window.latents, -config.chunk_frames, axis=1)
        is_new = jnp.arange(config.dpd.frames) >= config.dpd.frames - config.chunk_frames
        latents = tokens_to_latents(params["dpd"], config, controls, tokens, keys, context, is_new)
        return Window(tokens, latents)

    return per_device(sample, mesh, replicated=2)(params, number, controls, window)


@partial(jax.jit, static_argnames=("config", "context_tokens", "fillings"))
def fill_tokens(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    semantic_tokens: Int[Array, "B U"],
    is_new: Bool[Array, "B U"],
    number: Int[Array, ""],
    context_tokens: int = 0,
    fillings: int = 1,
) -> Int[Array, "B U"]:
    """A window in which the language model has written the tokens where `is_new`; the others stay.

    number: which window of the clip this is, from 0: each has its own random numbers. context_tokens: leading
    tokens that stay in every item; each saves a pass. fillings: how many the language model writes; the one after
    which the following tokens are most likely is used.
    """
    batch = len(is_new)
    fixed = jnp.where(is_new, -1, semantic_tokens)
    controls, fixed = jax.tree.map(lambda rows: jnp.repeat(rows, fillings, axis=0), (controls, fixed))
    keys = fold_in(item_keys(controls), 2 + number)
    keys = jax.vmap(jax.random.fold_in)(keys, jnp.tile(jnp.arange(fillings), batch))
    tokens = prefix_to_tokens(params, config, controls, keys, fixed[:, :context_tokens], fixed)
    if fillings == 1:
        return tokens
    log_probs = jax.nn.log_softmax(lm.logits(params, config.lm, controls.prefix_tokens, tokens))
    token_log_probs = jnp.take_along_axis(log_probs, tokens[..., None], axis=2)[..., 0]
    after_gap = (jnp.cumsum(fixed < 0, axis=1) > 0) & (fixed >= 0)
    best = jnp.argmax((token_log_probs * after_gap).sum(axis=1).reshape(batch, fillings), axis=1)
    return tokens.reshape(batch, fillings, -1)[jnp.arange(batch), best]


@partial(jax.jit, static_argnames="config")
def fill_latents(
    params: Params,
    config: SamplerConfig,
    controls: Controls,
    window: Window,
    is_new: Bool[Array, "B L"],
    number: Int[Array, ""],
) -> Float[Array, "B L D"]:
    """The latents of `window`: regenerated from its tokens where `is_new`, bit-identical elsewhere.

    number: as in `fill_tokens`.
    """
    keys = fold_in(item_keys(controls), 2 + number)
    return tokens_to_latents(params, config, controls, window.semantic_tokens, keys, window.latents, is_new)


def stream_latents(
    params: dict[str, Params],
    config: SamplerConfig,
    controls_at: Callable[[int], Controls],
    mesh: Mesh | None = None,
) -> Iterator[Float[Array, "B frames D"]]:
    """Yields new latents (B, n, D) endlessly: those of the first window, then those of one chunk after the other.

    controls_at(number): the controls of chunk `number`; 0 is the first window.
    """
    window = first_window(params, config, controls_at(0), mesh)
    yield window.latents
    for number in itertools.count(1):
        shift = config.chunk_tokens(number)
        window = next_window(params, config, controls_at(number), window, shift, jnp.int32(number), mesh)
        yield window.latents[:, -config.chunk_frames :]


@partial(jax.jit, static_argnames=("config", "mesh"))
def latents_to_wave(
    params: Params,
    config: VAEConfig,
    latents: Float[Array, "B L D"],
    first: jax.typing.ArrayLike = 0,
    mesh: Mesh | None = None,
) -> Float[Array, " B T *C"]:
    """Decodes latents. The first of them is latent `first` of its clip."""

    def decode(params: Params, first: jax.typing.ArrayLike, latents: jax.Array) -> jax.Array:
        return vae.decode(params, config, latents, first)

    return per_device(decode, mesh, replicated=2)(params, first, latents)
