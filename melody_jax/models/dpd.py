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

RoFormer's layers are residual, so its output contains its input: read literally, as `residual` "printed" does, each
block adds a blurred copy of the stream to itself. "post_norm", the default, and "pre_norm" add only what RoFormer's
layers found; in "pre_norm" the norms come before the paths, so the stream itself is never normalised. The paper's own
size is `PAPER`; `MODERN` and `MINI` have what our study of the layout found best (docs/studies.md): pre-norm,
modulation of each frame, and attention instead of the SRU inside the segments.

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
from melody_jax.models.conditioning import SMALL_INIT, Backbone, Conditioning, DenoiserConfig
from melody_jax.models.fine_path import FinePath, make_fine_path
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.models.modulation import AdaLN, FiLM
from melody_jax.models.roformer import RoFormer
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

FiLMForm = Literal["mlp", "adaln", "none"]
Residual = Literal["printed", "post_norm", "pre_norm"]


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
    """Modulation. "mlp": of the fine path by one vector per segment, MLP(x MLP(m) + MLP(m)), as in the paper. "adaln":
    scale, shift and gate of both paths for each frame by its own angle, as in a DiT; needs `residual` "pre_norm".
    "none": the pooled condition is added to the input instead."""
    residual: Residual = "post_norm"
    """What a block adds to its stream H, and where it normalises. "printed": RMSNorm(H + RoFormer(H)), RoFormer's
    output with its input in it. "post_norm": RMSNorm(H + C), C without the input. "pre_norm": H + C(RMSNorm(H))."""
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
        for name, options in (("fine", FinePath), ("film", FiLMForm), ("residual", Residual)):
            options = get_args(options)
            if getattr(self, name) not in options:
                raise UserError(
                    f"unknown {name} {getattr(self, name)!r}: expected one of {', '.join(options)}"
                )
        if self.film == "adaln" and self.residual != "pre_norm":
            raise UserError(f'film "adaln" needs residual "pre_norm"; residual is {self.residual!r}')

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
        modulation = {"mlp": 2 * dense * (sheet + 2 * count), "adaln": 6 * dense * frames, "none": 0}[
            self.film
        ]
        total = frames * (self.input_dim + self.latent_dim) * w + self.blocks * (
            modulation + self._fine_macs(count)
        )
        total += 2 * dense * frames if self.film == "adaln" else 0
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
    fine="local_attention",
    residual="pre_norm",
    film="adaln",
    frame_clock=True,
    aligned_tokens=True,
    prefix_conditioning=True,
)
"""The paper's size on 50 Hz latents, with a fifth of the operations and the best layout."""
SMALL = dataclasses.replace(MODERN, width=256, blocks=4, heads=4)
"""`MODERN` for one GPU."""
MINI = DPDConfig(
    latent_dim=64,
    frames=256,
    frames_per_token=1,
    width=256,
    blocks=4,
    segment=16,
    angle_width=128,
    heads=8,
    roformer_layers=1,
    fine="local_attention",
    residual="pre_norm",
    film="adaln",
    frame_clock=True,
    aligned_tokens=True,
    prefix_conditioning=True,
    prefix_codes=256,
)
"""The released size, with the best layout; the release has control tokens as well."""
ABLATION = dataclasses.replace(
    MINI,
    frames=128,
    width=96,
    heads=4,
    angle_width=64,
    fine="sru",
    sru_hidden=48,
    residual="printed",
    film="mlp",
)
"""The size that studies compare, in the printed layout; each other backbone has an `ABLATION` of equal size."""
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


class DualPathBlock(nnx.Module):
    """One dual-path block; `n` is its merge width."""

    def __init__(self, config: DPDConfig, n: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.n = n
        width = config.width
        dtype = config.dtype
        self.coarse = RoFormer(
            width,
            config.heads,
            config.feed_forward,
            config.roformer_layers,
            dtype,
            config.cross_attention,
            rngs=rngs,
        )
        self.coarse_norm = RMSNorm(width, rngs=rngs)
        self.fine = make_fine_path(
            config.fine, width, config.heads, config.sru_hidden, config.sru_layers, dtype, rngs
        )
        self.projects = config.fine != "local_attention" and 2 * config.sru_hidden != width
        if self.projects:
            self.fine_out = Linear(2 * config.sru_hidden, width, dtype=dtype, rngs=rngs)
        if config.film == "adaln":
            self.modulation = AdaLN(width, 6, dtype, rngs=rngs)
        else:
            self.film = FiLM(width, config.film == "mlp", dtype, rngs=rngs)
        self.fine_norm = RMSNorm(width, rngs=rngs)

    def __call__(
        self, sheet: Float[Array, "K B S W"], modulation: Float[Array, "B _ W"], cond: Conditioning
    ) -> Float[Array, "K B S W"]:
        """(K, B, S, W) to the same; `modulation` (B, S, W) of the segments, or (B, L, W) of the frames for AdaLN."""
        sheet = sharding.constrain_batch(sheet, axis=1)
        if self.config.film == "adaln":
            return self._modulated(sheet, modulation, cond)
        if self.config.residual == "pre_norm":
            sheet = sheet + self._coarse_path(self.coarse_norm(sheet), cond)
            return sheet + self.film(self._fine_path(self.fine_norm(sheet)), modulation)
        sheet = self.coarse_norm(sheet + self._coarse_path(sheet, cond))
        return self.fine_norm(sheet + self.film(self._fine_path(sheet), modulation))

    def _modulated(self, sheet: Array, condition: Array, cond: Conditioning) -> Array:
        """The block with scale, shift and gate of both paths from the condition (B, L, W) of the frames."""
        config = self.config
        parts = [segment(part, config.segment, config.overlap) for part in self.modulation(condition)]
        scale, shift, gate, fine_scale, fine_shift, fine_gate = parts
        h = self.coarse_norm(sheet) * (1 + scale) + shift
        sheet = sheet + gate * self._coarse_path(h, cond)
        h = self.fine_norm(sheet) * (1 + fine_scale) + fine_shift
        return sheet + fine_gate * self._fine_path(h)

    def _coarse_path(self, sheet: Array, cond: Conditioning) -> Array:
        """RoFormer along the segments of the merged sheet, (K, B, S, W) to the same."""
        config = self.config
        columns, _, count, _ = sheet.shape
        positions = segment_positions(count, config.segment, config.frames_per_token, config.overlap)
        query_positions = positions[None]
        if config.frame_clock:
            query_positions = column_positions(
                count, columns, self.n, config.frames_per_token, config.overlap
            )
        merged = merge(sheet, self.n)
        coarse = self.coarse(merged, cond, query_positions, positions)
        if config.residual != "printed":
            coarse = coarse - merged
        return repeat(coarse, self.n, columns)

    def _fine_path(self, sheet: Array) -> Array:
        """The network inside the segments, (K, B, S, W) to the same."""
        columns, batch, count, width = sheet.shape
        fine = self.fine(sharding.constrain_batch(sheet.reshape(columns, batch * count, width), axis=1))
        fine = sharding.constrain_batch(fine.reshape(columns, batch, count, -1), axis=1)
        return self.fine_out(fine) if self.projects else fine


class DPD(Backbone):
    """The whole network."""

    config: DPDConfig

    def __init__(self, config: DPDConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        width = config.width
        dtype = config.dtype
        self.inputs = Linear(config.input_dim, width, dtype=dtype, rngs=rngs)
        if config.residual != "pre_norm":
            self.input_norm = RMSNorm(width, rngs=rngs)
        self.blocks = nnx.List([DualPathBlock(config, n, rngs=rngs) for n in config.merge_widths])
        self.output_norm = RMSNorm(width, rngs=rngs)
        if config.film == "adaln":
            self.output_modulation = AdaLN(width, 2, dtype, rngs=rngs)
        self.outputs = Linear(width, config.latent_dim, kernel_init=SMALL_INIT, dtype=dtype, rngs=rngs)

    def __call__(self, noisy: Float[Array, "B L _"], cond: Conditioning) -> Float[Array, "B L D"]:
        """(B, L, `input_dim`) to (B, L, D)."""
        config = self.config
        frames = noisy.shape[1]
        x = sharding.constrain_batch(self.inputs(noisy) + cond.angles) + cond.aligned
        if config.film == "none":
            x = x + cond.pooled[:, None]
        if config.residual != "pre_norm":
            x = self.input_norm(x)
        modulation = self._modulation(cond)
        sheet = segment(x, config.segment, config.overlap)
        for block in self.blocks:
            apply = partial(block, modulation=modulation, cond=cond)
            sheet = functional.rematerialised(apply, config.remat)(sheet)
        h = self.output_norm(overlap_add(sheet, frames, config.overlap))
        if config.film == "adaln":
            scale, shift = self.output_modulation(modulation)
            h = h * (1 + scale) + shift
        return self.outputs(h)

    def _modulation(self, cond: Conditioning) -> Array:
        """What modulates the blocks: (B, L, W), each frame's angle embedding and the pooled condition, for AdaLN.

        Otherwise (B, S, W): segment s has the angle embedding of frame floor(s L / S), as in the paper.
        """
        angles = cond.angles
        if self.config.film != "adaln":
            frames = angles.shape[1]
            count = segment_count(frames, self.config.segment, self.config.overlap)
            angles = angles[:, np.arange(count) * frames // count]
        return sharding.constrain_batch(angles + cond.pooled[:, None])
