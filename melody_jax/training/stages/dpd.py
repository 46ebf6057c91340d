"""Training of dual-path diffusion: multi-chunk velocity regression (MeLoDy, arXiv 2305.15719, section 4.1).

Every chunk of a window gets an independent angle, a share of the items loses its condition so that sampling can be
guided, and the loss is the mean squared error of the velocity. Frames at angle exactly 0 (the clean context of
`clean_prefix`) are left out of the mean: their velocity is the noise that was not added, which nothing can predict,
and sampling never changes them.

Legend: B batch, L latent frames, D latent width, U semantic tokens, P prefix levels.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from melody_jax import diffusion, parameterisation
from melody_jax.data.feature_shape import FeatureShape
from melody_jax.errors import UserError
from melody_jax.models import denoiser
from melody_jax.models.controls import drop_controls
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.dpd import DPDConfig
from melody_jax.models.functional import Params
from melody_jax.options import check_fields, option
from melody_jax.roles import Roles
from melody_jax.training.angle_errors import error_at_angles
from melody_jax.training.codebooks import prefix_embeddings, semantic_embeddings
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients


class Draws(NamedTuple):
    """All random quantities of a step. Stages that differ in their network only draw the same from the same key."""

    has_condition: Bool[Array, " B"]
    """(B,): items that keep their condition."""
    angle: Float[Array, "B L"]
    """(B, L) radians."""
    tokens: Int[Array, "B U"]
    """(B, U) semantic tokens, some replaced."""
    prefix: Int[Array, "B P"]
    """(B, P) prefix and control tokens, some absent (-1)."""
    noise: Float[Array, "B L D"]
    """(B, L, D)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPDStage(Stage):
    """Semantic tokens (and optionally prefix tokens) to latents. The defaults are the paper's."""

    batch: ClassVar[str] = "features"
    name: ClassVar[str] = "dpd"

    model: DenoiserConfig = dataclasses.field(default_factory=DPDConfig)
    """The network: the config of any backbone (models/denoiser.py)."""
    condition_dropout: float = option(0.1, least=0, most=1)
    """Share of items trained without a condition, for classifier-free guidance."""
    shared_angle: float = option(0.0, least=0, most=1)
    """Share of items with one angle for the whole window, as in generation."""
    clean_prefix: float = option(0.0, least=0, most=1)
    """Share of items with clean leading chunks, as in continuation."""
    angles: diffusion.AngleDistribution = "uniform"
    """Distribution of the training angles, see `diffusion.warp_angles`; with "trigflow", of the network's c_noise."""
    angle_mean: float = 0.0
    """Mean of log tan(angle), for "logit_normal": above 0 for more noise."""
    angle_std: float = option(1.0, above=0)
    """Standard deviation of log tan(angle), for "logit_normal", above 0."""
    token_corruption: float = option(0.0, least=0, most=1)
    """Share of semantic tokens replaced by random ones: the LM makes errors too."""
    prefix_dropout: float = option(0.1, least=0, most=1)
    """Share of items whose prefix is absent; for `prefix_conditioning` only."""
    prefix_level_dropout: float = option(0.1, least=0, most=1)
    """Share of individual prefix levels that are absent; for `prefix_conditioning` only."""

    mulan: str = ""
    """Folder of the released MuLan whose codebooks initialise the prefix embeddings; empty: random embeddings."""
    tokenizer: str = ""
    """Folder of the released tokenizer whose codebook initialises the token embeddings; empty: random embeddings."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.shared_angle + self.clean_prefix <= 1:
            raise UserError(
                f"shared_angle {self.shared_angle} and clean_prefix {self.clean_prefix} are shares of the same items; "
                "together they must be at most 1"
            )
        if self.mulan and not self.model.prefix_conditioning:
            raise UserError(
                f"mulan is {self.mulan!r}, but the model has no prefix_conditioning; leave it out"
            )
        for name in ("guidance_range", "text", "lower_ratio"):
            if getattr(self.model, name):
                raise UserError(
                    f"model.{name} is {getattr(self.model, name)}; it must be {getattr(DenoiserConfig, name)} in this "
                    "stage"
                )

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        return {"model": denoiser.roles(self.model)}

    @property
    def features(self) -> FeatureShape:
        """The sizes of features that the network needs."""
        model = self.model
        prefix = model.prefix_conditioning
        return FeatureShape(
            semantic_ids=model.semantic_tokens,
            prefix_levels=model.prefix_levels if prefix or model.controls else 0,
            prefix_ids=model.prefix_codes if prefix else 0,
            latent_channels=model.latent_dim,
            latents_per_token=model.frames_per_token,
            window_tokens=model.frames // model.frames_per_token,
            controls=model.controls,
        )

    def init(self, key: PRNGKeyArray) -> Params:
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
        self, params: Params, batch: Batch, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Metrics]:
        """Gradients of the velocity error on {"latents" (B, L, D), "semantic_tokens", "prefix_tokens"}."""
        return loss_gradients(self._loss, params, batch, key)

    def draw(self, batch: Batch, key: PRNGKeyArray) -> Draws:
        """The random quantities of a step. Each kind has its own key: a change of one leaves the others."""
        keys = jax.random.split(key, 4)
        latents = batch["latents"]
        count, frames, _ = latents.shape
        has_condition = jax.random.bernoulli(keys[0], 1 - self.condition_dropout, (count,))
        angle = diffusion.sample_angles(
            keys[1], count, frames, self.model.chunks, self.shared_angle, self.clean_prefix
        )
        angle = diffusion.warp_angles(angle, self.angles, self.angle_mean, self.angle_std)
        angle = parameterisation.angle_from_noise_input(self.model.objective, self.model.sigma_data, angle)
        tokens, prefix = self._perturb(batch, keys[2])
        return Draws(has_condition, angle, tokens, prefix, jax.random.normal(keys[3], latents.shape))

    def _loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
        draws = self.draw(batch, key)
        error = self._errors(params["model"], batch["latents"], draws).mean(axis=-1)
        error = error * parameterisation.loss_weight(self.model.objective, self.model.sigma_data, draws.angle)
        is_noisy = (draws.angle > 0).astype(error.dtype)
        return (error * is_noisy).sum() / jnp.maximum(is_noisy.sum(), 1), {"weight": is_noisy.sum()}

    def _perturb(self, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Semantic tokens with some replaced, and prefix and control tokens with some absent (-1)."""
        replaced_key, token_key, prefix_key, level_key, control_key = jax.random.split(key, 5)
        tokens = batch["semantic_tokens"]
        controls = batch["prefix_tokens"][:, self.model.prefix_levels :]
        prefix = batch["prefix_tokens"][:, : self.model.prefix_levels]
        replaced = jax.random.bernoulli(replaced_key, self.token_corruption, tokens.shape)
        random = jax.random.randint(token_key, tokens.shape, 0, self.model.semantic_tokens, tokens.dtype)
        absent = jax.random.bernoulli(prefix_key, self.prefix_dropout, (prefix.shape[0], 1))
        absent |= jax.random.bernoulli(level_key, self.prefix_level_dropout, prefix.shape)
        prefix = jnp.where(absent, -1, prefix)
        if self.model.controls is not None:
            dropped = drop_controls(controls, control_key)
            prefix = jnp.concatenate([prefix, dropped], axis=1)
        return jnp.where(replaced, random, tokens), prefix

    def _errors(self, model: Params, latents: Array, draws: Draws, has_condition: int | None = None) -> Array:
        """Squared velocity errors (B, L, D); `has_condition` overrides that of `draws`, see `denoiser.velocity`."""
        noisy, target = diffusion.corrupt(latents, draws.noise, draws.angle)
        mask = draws.has_condition if has_condition is None else has_condition
        predicted = denoiser.velocity(model, self.model, noisy, draws.angle, draws.tokens, mask, draws.prefix)
        return (predicted - target) ** 2

    def evaluate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Velocity errors of a held-out batch, with nothing dropped or replaced.

        "loss" is conditional, at independent chunk angles; "loss_null" is unconditional at the same angles;
        "loss_at_0.2", 0.6, 1.0 and 1.4 have the whole window at that angle.
        """
        angle_key, noise_key = jax.random.split(key)
        latents = batch["latents"]
        count, frames, _ = latents.shape
        draws = Draws(
            has_condition=jnp.ones(count, bool),
            angle=diffusion.sample_angles(angle_key, count, frames, self.model.chunks),
            tokens=batch["semantic_tokens"],
            prefix=batch["prefix_tokens"],
            noise=jax.random.normal(noise_key, latents.shape),
        )

        def error(angle: Array, has_condition: int = count) -> Array:
            return self._errors(params["model"], latents, draws._replace(angle=angle), has_condition).mean()

        loss, at_angles = error_at_angles(error, draws.angle)
        return {"loss": loss, "loss_null": error(draws.angle, 0), **at_angles}

    def finish(self, model: Params, batches: Iterator[Batch], key: PRNGKeyArray) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}
