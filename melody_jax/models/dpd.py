"""Dual-path diffusion (DPD; MeLoDy, section 4.2 and figure 2): semantic tokens and noisy latents to a velocity.

The window is cut into half-overlapping segments, a sheet of S segments by K frames with K near sqrt(L), so that every
path is O(sqrt L) long. Each block has a coarse path, RoFormer along the segments on merged columns with
cross-attention to the tokens, and a fine path, a bidirectional SRU inside the segments, modulated by the diffusion
angle and the pooled condition:

    H = RMSNorm(z W_in + E_angle), segmented
    C = repeat(RoFormer(merge(H))) ;  F = RMSNorm(H + C)
    G = FiLM(SRU(F)) ;                H = RMSNorm(F + G)
    v = RMSNorm(overlap_add(H)) W_out

Without a condition (the null branch of classifier-free guidance) cross-attention turns to the sequence itself through
the same weights, and the pooled condition is zero: nothing of the tokens or the prefix reaches the output.

Legend: B batch, L latent frames, D latent width, W trunk width, U semantic tokens, S segments, K frames in a segment,
C merged columns, H heads, P prefix levels. Sheets are (K, B, S, W), columns first: that is what the SRU's loop wants.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params, Remat
from melody_jax.models.layers import RMSNorm
from melody_jax.models.roformer import BRANCH_GAIN, Condition, RoFormer
from melody_jax.models.segments import (
    column_clock,
    merge,
    merge_width,
    overlap_add,
    repeat,
    segment,
    segment_clock,
    segment_count,
)
from melody_jax.models.sru import SRU, SRUConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPDConfig:
    """Shape of the network and the choices the paper leaves open. The defaults are the paper's."""

    latent_dim: int = 16
    """Channels of a latent frame, D."""
    frames: int = 2500
    """Latent frames in a training window, L. The network itself takes any number."""
    frames_per_token: int = 10
    """Latent frames for one semantic token: the clock that both sides share."""
    chunks: int = 4
    """Chunks of a window that have angles of their own in training, M."""
    semantic_tokens: int = 1024
    """Size of the semantic vocabulary."""
    width: int = 768
    """Channels of the trunk, W."""
    blocks: int = 8
    """Dual-path blocks, N."""
    segment: int = 64
    """Frames in a segment, K; even."""
    angle_width: int = 256
    """Channels of the two learned ends that the angle blends."""
    heads: int = 12
    """Attention heads."""
    roformer_layers: int = 2
    """Layers (self-attention, feed-forward, cross-attention, feed-forward) in a block's coarse path."""
    feed_forward: int = 4
    """Width of a feed-forward layer as a multiple of W."""
    sru_hidden: int = 384
    """Width of one direction of the SRU."""
    sru_layers: int = 2
    """Layers of the SRU in a block."""
    sru_recurrent_weights: bool = True
    """The SRU's v terms; see models/sru.py."""
    sru_parallel_scan: bool = False
    """Parallel scan for an SRU without v terms; see models/sru.py."""
    film: str = "mlp"
    """Modulation of the fine path: "mlp", MLP(x MLP(m) + MLP(m)) as in the paper, or "affine", x (1 + A m) + B m."""
    film_mean: bool = False
    """The angle embedding that modulates a segment: False, of frame floor(s L / S); True, the mean of its frames."""
    merge_normalised: bool = False
    """Merging divides by the number of real columns in the window instead of counting zero padding as columns."""
    literal_sin: bool = False
    """Blends the angle's two ends by sin and sin, as printed, instead of cos and sin."""
    frame_clock: bool = False
    """Queries of cross-attention stand at the time of their merged column, not all at the centre of their segment."""
    aligned_tokens: bool = False
    """Adds to every frame of the input the embedding of the token that sounds there."""
    prefix_conditioning: bool = False
    """Adds an embedding of the MuLan prefix tokens to the pooled condition."""
    prefix_levels: int = 12
    """Prefix tokens, P."""
    prefix_codes: int = 1024
    """Codes of one prefix level."""
    prefix_width: int = 64
    """Channels of a prefix token's embedding."""
    guidance_range: tuple[float, float] | None = None
    """Least and largest guidance scale that a distilled network (training/stages/consistency.py) takes as an input: one
    pass gives the guided velocity. None: not an input; guidance needs a second pass without the condition."""
    dtype: str = "float32"
    """Compute type of the trunk; norms, softmax, rotary and diffusion angles stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.segment < 2 or self.segment % 2:
            raise UserError(f"segment is {self.segment}: it must be even, segments overlap by half")
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(f"width {self.width} in {self.heads} heads: rotary positions need an even width a head")
        if self.film not in ("mlp", "affine"):
            raise UserError(f"unknown film {self.film!r}: expected mlp or affine")
        if self.guidance_range and not 0 < self.guidance_range[0] <= self.guidance_range[1]:
            raise UserError(f"guidance_range is {self.guidance_range}: both above 0, the smaller one first")


PAPER = DPDConfig()
"""The published size, 295.6 M parameters."""
PAPER_ALIGNED = DPDConfig(frames=2560)
"""The same with 256 tokens over exactly 2,560 frames (melody-paper Q4)."""
MODERN = DPDConfig(
    latent_dim=64,
    frames=512,
    frames_per_token=2,
    segment=32,
    frame_clock=True,
    aligned_tokens=True,
    prefix_conditioning=True,
)
"""The paper's size on 50 Hz latents, a fifth of its operations."""
MINI = DPDConfig(
    latent_dim=64,
    frames=256,
    frames_per_token=1,
    width=192,
    blocks=4,
    segment=16,
    angle_width=128,
    heads=6,
    roformer_layers=1,
    sru_hidden=96,
    frame_clock=True,
    aligned_tokens=True,
    prefix_conditioning=True,
    prefix_codes=256,
)
TINY = DPDConfig(
    latent_dim=8,
    frames=80,
    frames_per_token=1,
    semantic_tokens=1024,
    width=32,
    blocks=2,
    segment=8,
    angle_width=16,
    heads=2,
    roformer_layers=1,
    sru_hidden=16,
    prefix_conditioning=True,
    prefix_width=8,
)


class MLP(nnx.Module):
    """RMSNorm(W2 gelu(x W1 + b1) + b2); `gain` is the norm's at first."""

    def __init__(self, inputs: int, width: int, dtype: str, gain: float = 1.0, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(inputs, width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(width, gain, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., inputs) to (..., width)."""
        return self.norm(self.out(jax.nn.gelu(self.hidden(x))))


class GuidanceEmbedding(nnx.Module):
    """A smooth function of the logarithm of the guidance scale that is zero at first."""

    WIDTH = 64

    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        wide = nnx.initializers.normal(1.0)  # the input is one number of about 1, the bias puts the bends along it
        self.hidden = nnx.Linear(1, self.WIDTH, kernel_init=wide, bias_init=wide, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(self.WIDTH, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, scale: jax.Array) -> jax.Array:
        """(B,) scales above 0 to (B, width)."""
        return self.out(jax.nn.gelu(self.hidden(jnp.log(scale)[:, None])))


class FiLM(nnx.Module):
    """Modulation of a sheet (K, B, S, W) by one vector a segment, m (B, S, W); see `DPDConfig.film`."""

    def __init__(self, config: DPDConfig, *, rngs: nnx.Rngs) -> None:
        self.form = config.film
        if self.form == "mlp":
            self.scale, self.shift, self.out = (
                MLP(config.width, config.width, config.dtype, gain, rngs=rngs) for gain in (1.0, 1.0, BRANCH_GAIN)
            )
        else:
            self.affine = nnx.Linear(config.width, 2 * config.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: jax.Array, m: jax.Array) -> jax.Array:
        """(K, B, S, W) modulated by (B, S, W)."""
        if self.form == "mlp":
            return self.out(x * self.scale(m) + self.shift(m))
        scale, shift = jnp.split(self.affine(m), 2, axis=-1)
        return x * (1 + scale) + shift


class Block(nnx.Module):
    """One dual-path block; `n` is its merge width."""

    def __init__(self, config: DPDConfig, n: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.n = config, n
        self.coarse = RoFormer(
            config.width, config.heads, config.feed_forward, config.roformer_layers, config.dtype, rngs=rngs
        )
        self.coarse_norm = RMSNorm(config.width, rngs=rngs)
        self.fine = SRU(
            SRUConfig(
                inputs=config.width,
                hidden=config.sru_hidden,
                layers=config.sru_layers,
                recurrent_weights=config.sru_recurrent_weights,
                parallel_scan=config.sru_parallel_scan,
            ),
            rngs=rngs,
        )
        if 2 * config.sru_hidden != config.width:
            self.fine_out = nnx.Linear(2 * config.sru_hidden, config.width, dtype=config.dtype, rngs=rngs)
        self.film = FiLM(config, rngs=rngs)
        self.fine_norm = RMSNorm(config.width, rngs=rngs)

    def __call__(self, sheet: jax.Array, modulation: jax.Array, context: Condition) -> jax.Array:
        """(K, B, S, W) to the same; `modulation` (B, S, W)."""
        columns, batch, count, width = sheet.shape
        sheet = functional.split_batch(sheet, axis=1)
        clock = context.segment_clock[None]
        if self.config.frame_clock:
            clock = column_clock(count, columns, self.n, self.config.frames_per_token)
        coarse = self.coarse(merge(sheet, self.n, self.config.merge_normalised), clock, context)
        sheet = self.coarse_norm(sheet + repeat(coarse, self.n, columns))
        fine = self.fine(functional.split_batch(sheet.reshape(columns, batch * count, width), axis=1))
        fine = functional.split_batch(fine.reshape(columns, batch, count, -1), axis=1)
        if 2 * self.config.sru_hidden != width:
            fine = self.fine_out(fine)
        return self.fine_norm(sheet + self.film(fine, modulation))


class DPD(nnx.Module):
    """The whole network; see `velocity`."""

    def __init__(self, config: DPDConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, dtype = config.width, config.dtype
        self.angle_ends = nnx.Param(jax.random.normal(rngs.params(), (2, config.angle_width)))
        self.angle = MLP(config.angle_width, width, dtype, rngs=rngs)
        self.token_table = nnx.Param(jax.random.normal(rngs.params(), (config.semantic_tokens, width)))
        self.token = MLP(width, width, dtype, rngs=rngs)
        if config.aligned_tokens:
            self.aligned = nnx.Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
        if config.prefix_conditioning:
            rows = config.prefix_levels * config.prefix_codes
            self.prefix_table = nnx.Param(jax.random.normal(rngs.params(), (rows, config.prefix_width)))
            self.prefix = MLP(config.prefix_width, width, dtype, rngs=rngs)
        if config.guidance_range:
            self.guidance = GuidanceEmbedding(width, dtype, rngs=rngs)
        self.inputs = nnx.Linear(config.latent_dim, width, dtype=dtype, rngs=rngs)
        self.input_norm = RMSNorm(width, rngs=rngs)
        self.blocks = nnx.List([Block(config, merge_width(i, config.blocks), rngs=rngs) for i in range(config.blocks)])
        self.output_norm = RMSNorm(width, rngs=rngs)
        # Near zero at first: the loss starts at the velocity's variance and not at twice that.
        small = nnx.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
        self.outputs = nnx.Linear(width, config.latent_dim, kernel_init=small, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        noisy: jax.Array,
        angle: jax.Array,
        semantic_tokens: jax.Array,
        conditioned: jax.Array | int,
        prefix_tokens: jax.Array | None,
        guidance_scale: jax.Array | None = None,
    ) -> jax.Array:
        """See `velocity`."""
        config = self.config
        batch, frames, _ = noisy.shape
        count = segment_count(frames, config.segment)
        rows = conditioned if isinstance(conditioned, int) else batch

        def spread(x: jax.Array) -> jax.Array:
            """Zeros for the items without a condition."""
            if isinstance(conditioned, int):
                return jnp.pad(x, ((0, batch - rows), *[(0, 0)] * (x.ndim - 1)))
            return x * conditioned.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

        angles = self._embed_angle(angle)
        if config.guidance_range:
            assert guidance_scale is not None, "this network takes the guidance scale as an input"
            angles = angles + self.guidance(jnp.broadcast_to(guidance_scale, (batch,)))[:, None]
        tokens = functional.split_batch(self.token(functional.look_up(self.token_table[...], semantic_tokens[:rows])))
        pooled = tokens.mean(axis=1)
        if config.prefix_conditioning:
            pooled = pooled + self._embed_prefix(rows, prefix_tokens)
        x = functional.split_batch(self.inputs(noisy) + angles)
        if config.aligned_tokens:
            sounding = np.minimum(np.arange(frames) // config.frames_per_token, tokens.shape[1] - 1)
            x = x + spread(self.aligned(tokens)[:, sounding])
        context = Condition(
            tokens=tokens,
            conditioned=conditioned,
            clock=np.arange(tokens.shape[1]) + 0.5,
            segment_clock=segment_clock(count, config.segment, config.frames_per_token),
        )
        modulation = functional.split_batch(self._angle_of_segments(angles, count) + spread(pooled)[:, None])
        sheet = segment(self.input_norm(x), config.segment)
        for block in self.blocks:
            apply = partial(block, modulation=modulation, context=context)
            sheet = functional.rematerialised(apply, config.remat)(sheet)
        return self.outputs(self.output_norm(overlap_add(sheet, frames))).astype(jnp.float32)

    def _embed_angle(self, angle: jax.Array) -> jax.Array:
        start, end = self.angle_ends[...]
        angle = angle.astype(jnp.float32)[..., None]
        first = jnp.sin(angle) if self.config.literal_sin else jnp.cos(angle)
        return functional.split_batch(self.angle(functional.split_batch(first * start + jnp.sin(angle) * end)))

    def _angle_of_segments(self, angles: jax.Array, count: int) -> jax.Array:
        frames = angles.shape[1]
        if not self.config.film_mean:
            return angles[:, np.arange(count) * frames // count]
        real = segment(jnp.ones((1, frames, 1), angles.dtype), self.config.segment).sum(axis=0)
        return segment(angles, self.config.segment).sum(axis=0) / jnp.maximum(real, 1)

    def _embed_prefix(self, rows: int, prefix_tokens: jax.Array | None) -> jax.Array:
        config = self.config
        if prefix_tokens is None:
            prefix_tokens = jnp.full((rows, config.prefix_levels), -1)
        codes = prefix_tokens[:rows]
        present = (codes >= 0)[..., None]
        entries = jnp.maximum(codes, 0) + np.arange(config.prefix_levels) * config.prefix_codes
        total = jnp.where(present, functional.look_up(self.prefix_table[...], entries), 0.0).sum(axis=1)
        return self.prefix(total / jnp.maximum(present.sum(axis=1), 1))


def init(config: DPDConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    return functional.init(DPD, config, key=key)


def velocity(
    params: Params,
    config: DPDConfig,
    noisy: jax.Array,
    angle: jax.Array,
    semantic_tokens: jax.Array,
    conditioned: jax.Array | int,
    prefix_tokens: jax.Array | None = None,
    guidance_scale: jax.Array | None = None,
) -> jax.Array:
    """The velocity (B, L, D) of noisy latents, float32.

    noisy: (B, L, D); angle: (B, L) in [0, pi/2]; semantic_tokens: (B, U) int, U = L / frames_per_token.
    conditioned: either (B,) bool, any mixture of items with and without a condition, for training: cross-attention then
        computes both of its forms; or a Python int n, the first n items have a condition and the rest have none, for
        guidance: nothing is computed twice (`semantic_tokens` and `prefix_tokens` may then have n rows only).
    prefix_tokens: (B, P) int, -1 for an absent level; None is all absent. Unused without `prefix_conditioning`.
    guidance_scale: (B,) or a scalar within `guidance_range`; unused by a network without one.
    """
    network = functional.bind(DPD, config, params=params)
    return network(noisy, angle, semantic_tokens, conditioned, prefix_tokens, guidance_scale)


def flops(config: DPDConfig, frames: int | None = None) -> int:
    """Floating-point operations of the matmuls in one conditioned pass over one window of `frames` (default L)."""
    frames = config.frames if frames is None else frames
    w, count, tokens = config.width, segment_count(frames, config.segment), frames // config.frames_per_token
    dense = w * w
    total = frames * (config.angle_width * w + dense + 2 * config.latent_dim * w) + tokens * 2 * dense
    total += frames * dense if config.aligned_tokens else 0
    for block in range(config.blocks):
        columns = -(-config.segment // merge_width(block, config.blocks))
        coarse = columns * count * ((6 + 4 * config.feed_forward) * dense + 2 * w * (count + tokens))
        total += config.roformer_layers * (coarse + tokens * 2 * dense)
        frames_of_sheet, both = config.segment * count, 2 * config.sru_hidden
        total += frames_of_sheet * 4 * both * (w + (config.sru_layers - 1) * both)
        total += frames_of_sheet * both * w if both != w else 0
        total += 2 * dense * (frames_of_sheet + 2 * count) if config.film == "mlp" else 2 * dense * count
    return 2 * total
