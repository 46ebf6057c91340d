"""Consistency distillation of a DPD in angle space with guidance folded in: few steps, one pass each.

A consistency function takes every point on a path of the guided diffusion to the clean latents at the path's end (Song
et al. 2023, arXiv 2303.01469). In angles (TrigFlow with sigma_data 1, Lu and Song 2024, arXiv 2410.11081: latents must
be whitened) it needs no head of its own, for it is the clean estimate of a velocity, at angle 0 the point itself:

    f(z, angle) = cos(angle) z - sin(angle) v(z, angle)

The teacher walks from a noisy window down its path: N guided steps of second order, over at most `span` radians. Where
it stops, the student's own f, without gradient, says the path's end, and f is to say the same at points of the walk.
With a span of pi/2 the walk always reaches the end and the target is the teacher's alone. One step of a short span is
the textbook's form: two passes of the teacher instead of 2 N, but the truth must spread from small angles to large.
The loss is the squared error of the velocity that would lead to the target, so that all angles weigh alike.

The student is the teacher with the guidance scale as one more input. `params["base"]` is the teacher; `params["model"]`
is what is added to it, so that only what was learned is averaged, kept and released.

Legend: B batch, L latent frames, D latent width, N teacher steps, P points.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import diffusion
from melody_jax.errors import UserError
from melody_jax.models import denoiser, functional
from melody_jax.models.conditioning import GuidanceEmbedding
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.dpd import DPDConfig
from melody_jax.models.functional import Params
from melody_jax.release import add_difference
from melody_jax.training.stage import Batch, Metrics, loss_gradients
from melody_jax.training.stages.dpd import DPDStage

SMALLEST_START = 0.2
"""Radians; from here down paths are nearly straight, and the teacher's own velocity says it all."""


class Walks(NamedTuple):
    """Where the teacher's walks start."""

    noisy: jax.Array
    """(B, L, D), clean in frames that are not new."""
    angle: jax.Array
    """(B,) of the new frames."""
    is_new: jax.Array
    """(B, L) bool."""
    guidance_scale: jax.Array
    """(B,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyStage:
    """Distils the DPD of `TrainConfig.init_from`, a release, into one for few steps."""

    batch: ClassVar[str] = "features"
    name: ClassVar[str] = "dpd_distilled"

    model: DenoiserConfig = dataclasses.field(default_factory=lambda: DPDConfig(guidance_range=(1.0, 4.0)))
    """The student; the teacher is the same without `guidance_range`."""
    teacher_steps: int = 5
    """Guided steps of a walk, N."""
    span: float = diffusion.HALF_PI
    """How far a walk leads at most, radians; pi/2: always to the end of the path."""
    points: int = 3
    """Points of a walk that the student learns from, P: its start, and others of the N it visits, drawn."""
    start_at_noise: float = 0.5
    """Share of walks that start at pi/2, as sampling does; the others start at an angle drawn below it."""
    clean_prefix: float = 0.2
    """Share of items with clean leading chunks, as in continuation."""
    usual_guidance: float = 2.5
    """Guidance scale of half of the items, and of evaluation; the others' are log-uniform over `guidance_range`."""

    def __post_init__(self) -> None:
        if self.model.guidance_range is None:
            raise UserError("stage.model.guidance_range is None; the student must be told the guidance scale")
        least, largest = self.model.guidance_range
        if not 1 <= self.points <= self.teacher_steps:
            raise UserError(
                f"stage.points is {self.points}; it must be from 1 to teacher_steps {self.teacher_steps}"
            )
        if not 0 < self.span <= diffusion.HALF_PI:
            raise UserError(f"stage.span is {self.span}; it must be above 0 and at most pi/2")
        if not least <= self.usual_guidance <= largest:
            raise UserError(
                f"stage.usual_guidance is {self.usual_guidance}; it must be from {least} to {largest}"
            )

    @property
    def teacher(self) -> DPDStage:
        """The stage whose released network a run starts from (`TrainConfig.init_from`)."""
        return DPDStage(model=dataclasses.replace(self.model, guidance_range=None))

    def init(self, key: jax.Array) -> Params:
        """A student that is its teacher: nothing is added, and the guidance scale changes nothing."""
        base = self.teacher.init(key)["model"]
        guidance = functional.init(GuidanceEmbedding, self.model.width, self.model.dtype, key=key)
        return {"base": base, "model": jax.tree.map(jnp.zeros_like, base) | {"guidance": guidance}}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients of the student's error on {"latents" (B, L, D), "semantic_tokens", "prefix_tokens"}."""

        def loss(learned: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            draw_key, point_key = jax.random.split(key)
            walks = self._draw(batch["latents"], draw_key)
            others = jax.random.randint(point_key, (self.points - 1, len(walks.angle)), 1, self.teacher_steps)
            chosen = jnp.concatenate([jnp.zeros((1, len(walks.angle)), others.dtype), others])
            errors = self._errors(params["base"], learned["model"], batch, walks, chosen)
            new = jnp.broadcast_to(walks.is_new, errors.shape)
            return (errors * new).sum() / jnp.maximum(new.sum(), 1), {"weight": new.sum().astype(jnp.float32)}

        return loss_gradients(loss, {"model": params["model"]}, batch, key)

    def _draw(self, latents: jax.Array, key: jax.Array) -> Walks:
        """Starts of walks from clean latents (B, L, D)."""
        keys = jax.random.split(key, 7)
        count, frames, _ = latents.shape
        ahead = (
            diffusion.sample_angles(keys[0], count, frames, self.model.chunks, clean_prefix_probability=1.0)
            > 0
        )
        is_new = ahead | jax.random.bernoulli(keys[1], 1 - self.clean_prefix, (count, 1))
        angle = jax.random.uniform(keys[2], (count,), minval=SMALLEST_START, maxval=diffusion.HALF_PI)
        angle = jnp.where(
            jax.random.bernoulli(keys[3], self.start_at_noise, (count,)), diffusion.HALF_PI, angle
        )
        low, high = np.log(self.model.guidance_range or (1.0, 1.0))
        scale = jnp.exp(jax.random.uniform(keys[4], (count,), minval=low, maxval=high))
        scale = jnp.where(jax.random.bernoulli(keys[5], 0.5, (count,)), self.usual_guidance, scale)
        noise = jax.random.normal(keys[6], latents.shape)
        return Walks(diffusion.corrupt(latents, noise, is_new * angle[:, None])[0], angle, is_new, scale)

    def _errors(
        self, base: Params, difference: Params, batch: Batch, walks: Walks, chosen: jax.Array
    ) -> jax.Array:
        """Squared errors (P, B, L) of the student's velocity at the `chosen` (P, B) points of each walk."""
        student = add_difference(base, difference)
        visited, angles, target = self._walk(base, jax.lax.stop_gradient(student), batch, walks)
        rows = jnp.arange(len(walks.angle))
        noisy, angle = visited[chosen, rows], angles[chosen, rows, None] * walks.is_new
        count = len(chosen)
        points, at = noisy.reshape(-1, *noisy.shape[2:]), angle.reshape(-1, angle.shape[-1])
        scales = jnp.tile(walks.guidance_scale, count)
        velocity = self._velocity(student, points, at, _repeat(batch, count), scales).reshape(noisy.shape)
        # angles of frames that are not new only keep the division finite
        wanted = diffusion.clean_to_velocity(noisy, target, jnp.where(walks.is_new, angle, 1.0))
        return jnp.square(velocity - jax.lax.stop_gradient(wanted)).mean(axis=-1)

    def _walk(
        self, base: Params, student: Params, batch: Batch, walks: Walks
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The N points before each step (N, B, L, D), their angles (N, B), and the path's end (B, L, D)."""
        teacher, count = self.teacher.model, len(walks.angle)
        tokens, prefix, scale = (
            batch["semantic_tokens"],
            batch["prefix_tokens"],
            walks.guidance_scale[:, None, None],
        )
        length = jnp.minimum(walks.angle, self.span)
        turns = diffusion.paper_schedule(self.teacher_steps) / diffusion.HALF_PI
        ratios = np.append(0.0, turns[1:] / turns[:-1] / 2)

        def step(carry: Any, turn: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            noisy, angle, straight = carry
            both = jnp.tile(noisy, (2, 1, 1)), jnp.tile(angle[:, None] * walks.is_new, (2, 1))
            found = denoiser.velocity(base, teacher, *both, tokens, count, prefix)
            velocity = diffusion.guide(found[:count], found[count:], scale)
            # the velocity at the middle of the step, were its departure from a straight path to go on
            middle = velocity + turn[1] * (velocity - straight)
            omega = (turn[0] * length)[:, None] * walks.is_new
            straight = diffusion.ddim_step(velocity, -noisy, omega)
            return (diffusion.ddim_step(noisy, middle, omega), angle - turn[0] * length, straight), (
                noisy,
                angle,
            )

        start = walks.noisy, walks.angle, jnp.zeros_like(walks.noisy)
        (noisy, angle, _), (visited, angles) = jax.lax.scan(
            step, start, (jnp.asarray(turns, jnp.float32), jnp.asarray(ratios, jnp.float32))
        )
        if self.span < diffusion.HALF_PI:
            angle = jnp.maximum(angle, 0.0)[:, None] * walks.is_new
            velocity = self._velocity(student, noisy, angle, batch, walks.guidance_scale)
            noisy = diffusion.velocity_to_clean(noisy, velocity, angle)
        return visited, angles, noisy

    def _velocity(
        self, student: Params, noisy: jax.Array, angle: jax.Array, batch: Batch, scale: jax.Array
    ) -> jax.Array:
        tokens, prefix = batch["semantic_tokens"], batch["prefix_tokens"]
        return denoiser.velocity(student, self.model, noisy, angle, tokens, len(noisy), prefix, scale)

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """The student's errors on a held-out batch at the usual guidance, whole windows from pi/2.

        "loss" is the mean of "loss_at_<angle>" of three points of the walk, its start the first of them.
        """
        count, frames, _ = batch["latents"].shape
        noise, is_new = jax.random.normal(key, batch["latents"].shape), jnp.ones((count, frames), bool)
        start, scale = jnp.full((count,), diffusion.HALF_PI), jnp.full((count,), self.usual_guidance)
        numbers = np.unique([0, self.teacher_steps // 3, 2 * self.teacher_steps // 3])
        chosen = jnp.tile(numbers[:, None], (1, count))
        walks = Walks(noise, start, is_new, scale)
        errors = self._errors(params["base"], params["model"], batch, walks, chosen).mean(axis=(1, 2))
        turned = np.append(0.0, np.cumsum(diffusion.paper_schedule(self.teacher_steps)))[numbers]
        angles = diffusion.HALF_PI - turned * self.span / diffusion.HALF_PI
        named = {f"loss_at_{angle:.1f}": error for angle, error in zip(angles, errors, strict=True)}
        return {"loss": errors.mean(), **named}

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}


def _repeat(batch: Batch, count: int) -> Batch:
    """The conditions of a batch, `count` times one after the other."""
    return {name: jnp.tile(batch[name], (count, 1)) for name in ("semantic_tokens", "prefix_tokens")}
