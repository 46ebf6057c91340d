"""Training of dual-path diffusion: multi-chunk velocity regression (MeLoDy, section 4.1).

Every chunk of a window gets an angle of its own, tokens are dropped for a share of the items so that the network can
be guided, and the loss is the mean squared error of the velocity. Frames at angle exactly 0 (the clean context of
`clean_prefix_probability`) are left out of the mean: their velocity is the noise that was not added, which nothing can
predict, and sampling never turns them.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from melody_jax import diffusion, parameterisation
from melody_jax.models import denoiser
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.dpd import DPDConfig
from melody_jax.models.functional import Params
from melody_jax.training.codebooks import prefix_embeddings, semantic_embeddings
from melody_jax.training.stage import Batch, Metrics, loss_gradients


class Draws(NamedTuple):
    """All that is random in a step. Stages that differ in their network alone draw the same from the same key."""

    conditioned: jax.Array
    """(B,) bool: the items that keep their condition."""
    angle: jax.Array
    """(B, L) radians."""
    tokens: jax.Array
    """(B, U) semantic tokens, some replaced."""
    prefix: jax.Array
    """(B, P) prefix tokens, some absent (-1)."""
    noise: jax.Array
    """(B, L, D)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPDStage:
    """Semantic tokens (and optionally prefix tokens) to latents. The defaults are the paper's."""

    batch: ClassVar[str] = "features"
    name: ClassVar[str] = "dpd"

    model: DenoiserConfig = dataclasses.field(default_factory=DPDConfig)
    """The network: the config of any backbone (models/denoiser.py)."""
    condition_dropout: float = 0.1
    """Share of items trained without any condition, for guidance."""
    shared_angle: float = 0.0
    """Share of items with one angle for the whole window, as in generation."""
    clean_prefix: float = 0.0
    """Share of items with clean leading chunks, as in continuation."""
    maximum_angle: float = diffusion.HALF_PI
    """Largest training angle, radians; sampling starts at pi/2."""
    angles: diffusion.AngleDistribution = "uniform"
    """Distribution of the training angles, see `diffusion.warp_angles`; with "trigflow", of c_noise."""
    angle_mean: float = 0.0
    """Of log tan(angle), for "logit_normal": above 0 for more noise."""
    angle_std: float = 1.0
    """Standard deviation of log tan(angle), for "logit_normal", above 0."""
    token_corruption: float = 0.0
    """Share of semantic tokens replaced by random ones: what the LM writes is not free of errors either."""
    prefix_dropout: float = 0.1
    """Share of conditioned items whose prefix is absent; for `prefix_conditioning` only."""
    prefix_level_dropout: float = 0.1
    """Share of single prefix levels that are absent; for `prefix_conditioning` only."""

    mulan: str = ""
    """Folder of the released MuLan whose codebooks the prefix embeddings start from; empty: random embeddings."""
    tokenizer: str = ""
    """Folder of the released tokenizer whose codebook the token embeddings start from; empty: random embeddings."""

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""
        model = denoiser.init(self.model, key)
        if self.mulan and self.model.prefix_conditioning:
            shape = (self.model.prefix_levels, self.model.prefix_codes, self.model.prefix_width)
            model["prefix_table"] = prefix_embeddings(self.mulan, shape, key).reshape(
                model["prefix_table"].shape
            )
        if self.tokenizer:
            model["token_table"] = semantic_embeddings(self.tokenizer, model["token_table"].shape, key)
        return {"model": model}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients of the velocity error on {"latents" (B, L, D), "semantic_tokens", "prefix_tokens"}."""
        return loss_gradients(self._loss, params, batch, key)

    def draw(self, batch: Batch, key: jax.Array) -> Draws:
        """What a step draws for a batch. Each kind has a key of its own: a change of one leaves the others."""
        keys = jax.random.split(key, 4)
        latents = batch["latents"]
        count, frames, _ = latents.shape
        conditioned = jax.random.bernoulli(keys[0], 1 - self.condition_dropout, (count,))
        angle = diffusion.sample_angles(
            keys[1],
            count,
            frames,
            self.model.chunks,
            self.shared_angle,
            self.clean_prefix,
            self.maximum_angle,
        )
        angle = diffusion.warp_angles(angle, self.angles, self.angle_mean, self.angle_std, self.maximum_angle)
        angle = parameterisation.angle_from_noise_input(self.model.objective, self.model.sigma_data, angle)
        return Draws(
            conditioned, angle, *self._perturb(batch, keys[2]), jax.random.normal(keys[3], latents.shape)
        )

    def _loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        drawn = self.draw(batch, key)
        error = self._errors(params["model"], batch["latents"], drawn).mean(axis=-1)
        error = error * parameterisation.loss_weight(self.model.objective, self.model.sigma_data, drawn.angle)
        noisy = (drawn.angle > 0).astype(error.dtype)
        return (error * noisy).sum() / jnp.maximum(noisy.sum(), 1), {"weight": noisy.sum()}

    def _perturb(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Semantic tokens with some replaced, and prefix tokens with some absent (-1)."""
        where, which, whole, level = jax.random.split(key, 4)
        tokens, prefix = batch["semantic_tokens"], batch["prefix_tokens"]
        replaced = jax.random.bernoulli(where, self.token_corruption, tokens.shape)
        others = jax.random.randint(which, tokens.shape, 0, self.model.semantic_tokens, tokens.dtype)
        absent = jax.random.bernoulli(whole, self.prefix_dropout, (prefix.shape[0], 1))
        absent |= jax.random.bernoulli(level, self.prefix_level_dropout, prefix.shape)
        return jnp.where(replaced, others, tokens), jnp.where(absent, -1, prefix)

    def _errors(
        self, model: Params, latents: jax.Array, drawn: Draws, conditioned: int | None = None
    ) -> jax.Array:
        """Squared velocity errors (B, L, D); `conditioned` says otherwise which items are, see `denoiser.velocity`."""
        noisy, target = diffusion.corrupt(latents, drawn.noise, drawn.angle)
        who = drawn.conditioned if conditioned is None else conditioned
        predicted = denoiser.velocity(model, self.model, noisy, drawn.angle, drawn.tokens, who, drawn.prefix)
        return (predicted - target) ** 2

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """Velocity errors of a held-out batch, nothing dropped or replaced.

        "loss" is at independent chunk angles, conditioned; "loss_null" at the same ones without a condition;
        "loss_at_0.2", 0.6, 1.0 and 1.4 with the whole window at that angle.
        """
        angle_key, noise_key = jax.random.split(key)
        latents = batch["latents"]
        count, frames, _ = latents.shape
        drawn = Draws(
            conditioned=jnp.ones(count, bool),
            angle=diffusion.sample_angles(angle_key, count, frames, self.model.chunks),
            tokens=batch["semantic_tokens"],
            prefix=batch["prefix_tokens"],
            noise=jax.random.normal(noise_key, latents.shape),
        )

        def error(angle: jax.Array, conditioned: int = count) -> jax.Array:
            return self._errors(params["model"], latents, drawn._replace(angle=angle), conditioned).mean()

        fixed = (0.2, 0.6, 1.0, 1.4)
        angles = jnp.stack([drawn.angle, *(jnp.full_like(drawn.angle, angle) for angle in fixed)])
        loss, *at_fixed = jax.lax.map(error, angles)  # one program for all of them
        named = {f"loss_at_{angle}": value for angle, value in zip(fixed, at_fixed, strict=True)}
        return {"loss": loss, "loss_null": error(drawn.angle, 0), **named}

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}
