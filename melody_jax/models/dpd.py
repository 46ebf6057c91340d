"""Dual-path diffusion (DPD): predicts a velocity from semantic tokens and noisy latents.

MeLoDy, arXiv 2305.15719, section 4.1 and figure 2.

The window is cut into overlapping segments, a sheet of S segments by K frames with K near sqrt(L), so that every
path is O(sqrt L) long. Each block has a coarse path, RoFormer along the segments on merged columns with
cross-attention to the tokens, and a fine path, a bidirectional SRU inside the segments, modulated by the diffusion
angle and the pooled condition:

    H = RMSNorm(z W_in + E_angle), segmented
    C = repeat(RoFormer(merge(H))) ;  F = RMSNorm(H + C)
    G = FiLM(SRU(F)) ;                H = RMSNorm(F + G)
    v = RMSNorm(overlap_add(H)) W_out

Without a condition (the null branch of classifier-free guidance) cross-attention attends to the sequence itself with
the same weights, and the pooled condition is zero: the output does not depend on the tokens or the prefix.

Legend: B batch, L latent frames, D latent width, W trunk width, U semantic tokens, S segments, K frames in a segment,
C merged columns, H heads, P prefix levels. Sheets are (K, B, S, W), columns first: the layout for the SRU's loop.
"""

import dataclasses
from functools import partial
from typing import Literal, get_args

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.conditioning import MLP, SMALL_INIT, Backbone, Conditioning, DenoiserConfig
from melody_jax.models.fine_path import LinearRecurrence, LocalAttention
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.models.roformer import BRANCH_GAIN, RoFormer
from melody_jax.models.segments import (
    column_positions,
    merge,
    merge_width,
    overlap_add,
    repeat,
    segment,
    segment_count,
    segment_positions,
)
from melody_jax.models.sru import SRU, SRUConfig

FinePath = Literal["sru", "linear_recurrence", "local_attention"]
FiLMForm = Literal["mlp", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPDConfig(DenoiserConfig):
    """Shape of the network. The defaults are the paper's values, or our choices where it gives none."""

    blocks: int = 8
    """Dual-path blocks, N."""
    segment: int = 64
    """Frames in a segment, K."""
    overlap: int = 2
    """Segments that contain each frame, a divisor of K: with 2 they overlap by half, as in the paper; with 1
    they do not overlap."""
    heads: int = 12
    """Attention heads."""
    roformer_layers: int = 2
    """Layers (self-attention, feed-forward, cross-attention, feed-forward) in a block's coarse path."""
    feed_forward: int = 4
    """Width of a feed-forward layer as a multiple of W."""
    fine: FinePath = "sru"
    """The network inside the segments: the paper's SRU, or an alternative of equal size from models/fine_path.py."""
    sru_hidden: int = 384
    """Width of one direction of the SRU or the linear recurrence; attention is as wide as the trunk."""
    sru_layers: int = 2
    """Layers of the fine path in a block."""
    film: FiLMForm = "mlp"
    """Modulation of the fine path: "mlp", MLP(x MLP(m) + MLP(m)) as in the paper; "none": the pooled condition is added
    to the input instead."""
    merge: bool = True
    """Coarse paths take columns merged by 1, 2, 4, ..., 4, 2, 1; False: every column in every block."""
    frame_clock: bool = False
    """Queries of cross-attention are positioned at their merged column; False: all at the centre of their segment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment < 2 or self.overlap < 1 or self.segment % self.overlap:
            raise UserError(
                f"segment is {self.segment}, overlap {self.overlap}: the first must be a multiple of the second"
            )
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"width {self.width} in {self.heads} heads: rotary positions need an even width per head"
            )
        for name, options in (("fine", get_args(FinePath)), ("film", get_args(FiLMForm))):
            if getattr(self, name) not in options:
                raise UserError(
                    f"unknown {name} {getattr(self, name)!r}: expected one of {', '.join(options)}"
                )

    @property
    def merge_widths(self) -> list[int]:
        """Columns that each block's coarse path merges, n."""
        return [merge_width(block, self.blocks) if self.merge else 1 for block in range(self.blocks)]

    def macs(self, frames: int) -> int:
        """See `DenoiserConfig.macs`."""
        w = self.width
        count = segment_count(frames, self.segment, self.overlap)
        tokens = self.tokens(frames)
        dense = w * w
        sheet = self.segment * count
        film = 2 * dense * (sheet + 2 * count) if self.film == "mlp" else 0
        total = frames * 2 * self.latent_dim * w + self.blocks * (film + self._fine_macs(count))
        for n in self.merge_widths:
            positions = count * -(-self.segment // n)
            layer = positions * ((4 + 2 * self.feed_forward) * dense + 2 * w * count)
            if self.cross_attention:
                cross = (2 + 2 * self.feed_forward) * dense + 2 * w * tokens
                layer += positions * cross + tokens * 2 * dense
            total += self.roformer_layers * layer
        return total

    def _fine_macs(self, count: int) -> int:
        """Multiply-accumulates of one block's fine path over `count` segments."""
        w = self.width
        outputs = 2 * self.sru_hidden
        sheet = self.segment * count
        if self.fine == "local_attention":
            return sheet * self.sru_layers * (4 * w * w + 2 * w * self.segment)
        projection = sheet * outputs * w if outputs != w else 0
        return sheet * 4 * outputs * (w + (self.sru_layers - 1) * outputs) + projection


PAPER = DPDConfig()
"""The published size, 295.6 M parameters."""
PAPER_ALIGNED = DPDConfig(frames=2560)
"""The same with 256 tokens over exactly 2,560 frames: each of the 4 chunks has exactly 64 tokens."""
MODERN = DPDConfig(
    latent_dim=64,
    frames=512,
    frames_per_token=2,
    segment=32,
    frame_clock=True,
    aligned_tokens=True,
    prefix_conditioning=True,
)
"""The paper's size on 50 Hz latents, with a fifth of the operations."""
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
ABLATION = dataclasses.replace(MINI, frames=128, width=96, heads=4, angle_width=64, sru_hidden=48)
"""The size that studies compare; each other backbone has an `ABLATION` of equal size."""
TINY = DPDConfig(
    latent_dim=8,
    frames=80,
    frames_per_token=1,
    semantic_tokens=64,
    width=32,
    blocks=2,
    segment=8,
    angle_width=16,
    heads=2,
    roformer_layers=1,
    sru_hidden=16,
    prefix_conditioning=True,
    prefix_codes=8,
    prefix_width=8,
)


class FiLM(nnx.Module):
    """Modulation of a sheet (K, B, S, W) by one vector per segment, m (B, S, W); with `film` "none", only a norm."""

    def __init__(self, config: DPDConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        self.modulates = config.film == "mlp"
        if self.modulates:
            self.scale = MLP(width, width, config.dtype, rngs=rngs)
            self.shift = MLP(width, width, config.dtype, rngs=rngs)
            self.out = MLP(width, width, config.dtype, BRANCH_GAIN, rngs=rngs)
        else:
            self.out = RMSNorm(width, BRANCH_GAIN, rngs=rngs)

    def __call__(self, x: Float[Array, "K B S W"], m: Float[Array, "B S W"]) -> Float[Array, "K B S W"]:
        """(K, B, S, W) modulated by (B, S, W)."""
        return self.out(x * self.scale(m) + self.shift(m) if self.modulates else x)


def _fine_path(config: DPDConfig, rngs: nnx.Rngs) -> LocalAttention | LinearRecurrence | SRU:
    """The fine path of a block: (K, N, W) to (K, N, 2 H); attention to (K, N, W)."""
    if config.fine == "local_attention":
        return LocalAttention(config.width, config.heads, config.sru_layers, config.dtype, rngs=rngs)
    if config.fine == "linear_recurrence":
        return LinearRecurrence(config.width, config.sru_hidden, config.sru_layers, rngs=rngs)
    sru = SRUConfig(inputs=config.width, hidden=config.sru_hidden, layers=config.sru_layers)
    return SRU(sru, rngs=rngs)


class DualPathBlock(nnx.Module):
    """One dual-path block; `n` is its merge width."""

    def __init__(self, config: DPDConfig, n: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.n = n
        self.coarse = RoFormer(
            config.width,
            config.heads,
            config.feed_forward,
            config.roformer_layers,
            config.dtype,
            config.cross_attention,
            rngs=rngs,
        )
        self.coarse_norm = RMSNorm(config.width, rngs=rngs)
        self.fine = _fine_path(config, rngs)
        self.projects = config.fine != "local_attention" and 2 * config.sru_hidden != config.width
        if self.projects:
            self.fine_out = Linear(2 * config.sru_hidden, config.width, dtype=config.dtype, rngs=rngs)
        self.film = FiLM(config, rngs=rngs)
        self.fine_norm = RMSNorm(config.width, rngs=rngs)

    def __call__(
        self, sheet: Float[Array, "K B S W"], modulation: Float[Array, "B S W"], cond: Conditioning
    ) -> Float[Array, "K B S W"]:
        """(K, B, S, W) to the same; `modulation` (B, S, W)."""
        config = self.config
        columns, batch, count, width = sheet.shape
        sheet = sharding.constrain_batch(sheet, axis=1)
        positions = segment_positions(count, config.segment, config.frames_per_token, config.overlap)
        query_positions = positions[None]
        if config.frame_clock:
            query_positions = column_positions(
                count, columns, self.n, config.frames_per_token, config.overlap
            )
        coarse = self.coarse(merge(sheet, self.n), cond, query_positions, positions)
        sheet = self.coarse_norm(sheet + repeat(coarse, self.n, columns))
        fine = self.fine(sharding.constrain_batch(sheet.reshape(columns, batch * count, width), axis=1))
        fine = sharding.constrain_batch(fine.reshape(columns, batch, count, -1), axis=1)
        if self.projects:
            fine = self.fine_out(fine)
        return self.fine_norm(sheet + self.film(fine, modulation))


class DPD(Backbone):
    """The whole network."""

    config: DPDConfig

    def __init__(self, config: DPDConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        width = config.width
        dtype = config.dtype
        self.inputs = Linear(config.latent_dim, width, dtype=dtype, rngs=rngs)
        self.input_norm = RMSNorm(width, rngs=rngs)
        self.blocks = nnx.List([DualPathBlock(config, n, rngs=rngs) for n in config.merge_widths])
        self.output_norm = RMSNorm(width, rngs=rngs)
        self.outputs = Linear(width, config.latent_dim, kernel_init=SMALL_INIT, dtype=dtype, rngs=rngs)

    def __call__(self, noisy: Float[Array, "B L D"], cond: Conditioning) -> Float[Array, "B L D"]:
        """(B, L, D) to (B, L, D)."""
        config = self.config
        frames = noisy.shape[1]
        count = segment_count(frames, config.segment, config.overlap)
        x = sharding.constrain_batch(self.inputs(noisy) + cond.angles) + cond.aligned
        if config.film == "none":
            x = x + cond.pooled[:, None]
        modulation = self._segment_angles(cond.angles, count) + cond.pooled[:, None]
        modulation = sharding.constrain_batch(modulation)
        sheet = segment(self.input_norm(x), config.segment, config.overlap)
        for block in self.blocks:
            apply = partial(block, modulation=modulation, cond=cond)
            sheet = functional.rematerialised(apply, config.remat)(sheet)
        return self.outputs(self.output_norm(overlap_add(sheet, frames, config.overlap)))

    def _segment_angles(self, angles: Array, count: int) -> Array:
        """(B, S, W): segment s has the angle embedding of frame floor(s L / S), as in the paper."""
        frames = angles.shape[1]
        return angles[:, np.arange(count) * frames // count]
