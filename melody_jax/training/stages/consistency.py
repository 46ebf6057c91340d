"""Consistency distillation of a DPD in angle space, with guidance folded in: few steps of one evaluation each.

A consistency function maps every point of a trajectory of the guided diffusion to the trajectory's end, the clean
latents (Song et al. 2023, arXiv 2303.01469). With angles (TrigFlow with sigma_data 1, Lu and Song 2024, arXiv
2410.11081: latents must be whitened) it needs no extra head. It is the clean estimate of a velocity, which at angle 0
is the point itself:

    f(z, angle) = cos(angle) z - sin(angle) v(z, angle)

The teacher follows the trajectory of a noisy window for N guided second-order steps, over at most `span` radians. The
student's own f, without gradient, maps the last point to the target, and f is trained to map other points of the
trajectory to the same target. With a span of pi/2 the trajectory always reaches its end and the teacher alone makes the
target. One step of a short span is the textbook's form: two evaluations of the teacher instead of 2 N, but accuracy has
to propagate from small angles to large. The loss is the squared error of the velocity that would lead to the target, so
that all angles have equal weight.

The student is the teacher with the guidance scale as an additional input. `params["base"]` is the teacher and
`params["model"]` is what is added to it: only the difference is averaged, saved and released.

Legend: B batch, L latent frames, D latent width, N teacher steps, P points.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from melody_jax import diffusion, guidance
from melody_jax.data.feature_shape import FeatureShape
from melody_jax.errors import UserError
from melody_jax.models import denoiser, functional
from melody_jax.models.conditioning import GuidanceEmbedding
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.dpd import DPDConfig
from melody_jax.models.functional import Params
from melody_jax.options import check_fields, option
from melody_jax.release import add_difference
from melody_jax.roles import Roles
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients
from melody_jax.training.stages.dpd import DPDStage

SMALLEST_START = 0.2
"""Radians; below this angle trajectories are nearly straight and the teacher's velocity suffices."""


class Starts(NamedTuple):
    """The starting points of the teacher's trajectories."""

    noisy: Float[Array, "B L D"]
    """(B, L, D), clean in frames that are not new."""
    angle: Float[Array, " B"]
    """(B,) of the new frames."""
    is_new: Bool[Array, "B L"]
    """(B, L)."""
    guidance_scale: Float[Array, " B"]
    """(B,)."""


class Trajectory(NamedTuple):
    """What the teacher visits, and where it leads."""

    noisy: Float[Array, "N B L D"]
    """(N, B, L, D) before each step."""
    angle: Float[Array, "N B"]
    """(N, B) of the new frames, before each step."""
    target: Float[Array, "B L D"]
    """(B, L, D): the end of the trajectory, clean latents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyStage(Stage):
    """Distils the released DPD of `TrainConfig.init_from` into one that samples in few steps."""

    batch: ClassVar[str] = "features"
    name: ClassVar[str] = "dpd_distilled"

    model: DenoiserConfig = dataclasses.field(default_factory=lambda: DPDConfig(guidance_range=(1.0, 4.0)))
    """The student; the teacher is the same without `guidance_range`."""
    teacher_steps: int = option(5, least=1)
    """Guided steps of a trajectory, N."""
    span: float = diffusion.HALF_PI
    """Largest angle that a trajectory covers, radians; pi/2: always to its end."""
    points: int = option(3, least=1)
    """Points of a trajectory that the student learns from, P: its start and random ones of the N visited."""
    start_at_noise: float = option(0.5, least=0, most=1)
    """Share of trajectories that start at pi/2, as sampling does; the others start at a random smaller angle."""
    clean_prefix: float = option(0.2, least=0, most=1)
    """Share of items with clean leading chunks, as in continuation."""
    guidance_rescale: float = option(0.0, least=0, most=1)
    """How much of the spread that guidance adds is taken back, 0 to 1 (`guidance.rescale`). The student
    learns it: sampling with it has no such setting."""
    usual_guidance: float = 2.5
    """Guidance scale of half of the items, and of evaluation; the other half is log-uniform over `guidance_range`."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model.guidance_range is None:
            raise UserError(
                "stage.model.guidance_range is None; the student takes the guidance scale as an input"
            )
        least, largest = self.model.guidance_range
        if not 1 <= self.points <= self.teacher_steps:
            raise UserError(
                f"stage.points is {self.points}; it must be from 1 to teacher_steps {self.teacher_steps}"
            )
        if not 0 < self.span <= diffusion.HALF_PI:
            raise UserError(f"stage.span is {self.span}; it must be above 0 and at most pi/2")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"stage.guidance_rescale is {self.guidance_rescale}; it must be from 0 to 1")
        if not least <= self.usual_guidance <= largest:
            raise UserError(
                f"stage.usual_guidance is {self.usual_guidance}; it must be from {least} to {largest}"
            )

    @property
    def teacher(self) -> DPDStage:
        """The stage whose released network a run starts from (`TrainConfig.init_from`)."""
        return DPDStage(model=dataclasses.replace(self.model, guidance_range=None))

    @property
    def features(self) -> FeatureShape:
        """The sizes of features that the network needs."""
        return self.teacher.features

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        return {"base": self.teacher.roles["model"], "model": denoiser.roles(self.model)}

    def init(self, key: PRNGKeyArray) -> Params:
        """A student that equals its teacher at every guidance scale."""
        base = self.teacher.init(key)["model"]
        guidance = functional.init(GuidanceEmbedding, self.model.width, self.model.dtype, key=key)
        return {"base": base, "model": jax.tree.map(jnp.zeros_like, base) | {"guidance": guidance}}

    def gradients(
        self, params: Params, batch: Batch, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Metrics]:
        """Gradients of the student's error on {"latents" (B, L, D), "semantic_tokens", "prefix_tokens"}."""

        def loss(trained: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            draw_key, point_key = jax.random.split(key)
            starts = self._draw(batch["latents"], draw_key)
            count = len(starts.angle)
            others = jax.random.randint(point_key, (self.points - 1, count), 1, self.teacher_steps)
            points = jnp.concatenate([jnp.zeros((1, count), others.dtype), others])
            errors = self._errors(params["base"], trained["model"], batch, starts, points)
            is_new = jnp.broadcast_to(starts.is_new, errors.shape)
            mean = (errors * is_new).sum() / jnp.maximum(is_new.sum(), 1)
            return mean, {"weight": is_new.sum().astype(jnp.float32)}

        return loss_gradients(loss, {"model": params["model"]}, batch, key)

    def _draw(self, latents: Array, key: PRNGKeyArray) -> Starts:
        """Random starts of trajectories from clean latents (B, L, D)."""
        keys = jax.random.split(key, 7)
        count, frames, _ = latents.shape
        after_prefix = (
            diffusion.sample_angles(keys[0], count, frames, self.model.chunks, clean_prefix_probability=1.0)
            > 0
        )
        is_new = after_prefix | jax.random.bernoulli(keys[1], 1 - self.clean_prefix, (count, 1))
        angle = jax.random.uniform(keys[2], (count,), minval=SMALLEST_START, maxval=diffusion.HALF_PI)
        at_noise = jax.random.bernoulli(keys[3], self.start_at_noise, (count,))
        angle = jnp.where(at_noise, diffusion.HALF_PI, angle)
        low, high = np.log(self.model.guidance_range or (1.0, 1.0))
        scale = jnp.exp(jax.random.uniform(keys[4], (count,), minval=low, maxval=high))
        scale = jnp.where(jax.random.bernoulli(keys[5], 0.5, (count,)), self.usual_guidance, scale)
        noise = jax.random.normal(keys[6], latents.shape)
        noisy, _ = diffusion.corrupt(latents, noise, is_new * angle[:, None])
        return Starts(noisy, angle, is_new, scale)

    def _errors(self, base: Params, difference: Params, batch: Batch, starts: Starts, points: Array) -> Array:
        """Squared errors (P, B, L) of the student's velocity at the `points` (P, B) of each trajectory, 0 its start."""
        student = add_difference(base, difference)
        trajectory = self._trajectory(base, jax.lax.stop_gradient(student), batch, starts)
        rows = jnp.arange(len(starts.angle))
        noisy = trajectory.noisy[points, rows]
        angle = trajectory.angle[points, rows, None] * starts.is_new
        count = len(points)
        scales = jnp.tile(starts.guidance_scale, count)
        flat_noisy = noisy.reshape(-1, *noisy.shape[2:])
        flat_angle = angle.reshape(-1, angle.shape[-1])
        velocity = self._velocity(student, flat_noisy, flat_angle, _tile_conditions(batch, count), scales)
        # In frames that are not new any angle will do: it only keeps the division finite.
        target_angle = jnp.where(starts.is_new, angle, 1.0)
        target = diffusion.clean_to_velocity(noisy, trajectory.target, target_angle)
        return jnp.square(velocity.reshape(noisy.shape) - jax.lax.stop_gradient(target)).mean(axis=-1)

    def _trajectory(self, base: Params, student: Params, batch: Batch, starts: Starts) -> Trajectory:
        """The teacher's trajectories; a last evaluation of the student leads to the end if `span` is below pi/2."""
        teacher = self.teacher.model
        count = len(starts.angle)
        length = jnp.minimum(starts.angle, self.span)
        fractions = diffusion.paper_schedule(self.teacher_steps) / diffusion.HALF_PI
        ratios = np.append(0.0, fractions[1:] / fractions[:-1] / 2)

        def evaluate(noisy: Array, angle: Array) -> Array:
            tokens = batch["semantic_tokens"]
            return denoiser.velocity(base, teacher, noisy, angle, tokens, count, batch["prefix_tokens"])

        amount = jnp.full((count,), self.guidance_rescale)
        guided = guidance.guided(evaluate, starts.guidance_scale, amount, starts.is_new)

        def step(carry: Any, schedule: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
            noisy, angle, expected = carry
            fraction, ratio = schedule
            velocity = guided(noisy, angle[:, None] * starts.is_new)
            # The velocity at the middle of the step, if it keeps departing from a straight path as in the last step.
            middle = velocity + ratio * (velocity - expected)
            angle_step = (fraction * length)[:, None] * starts.is_new
            expected = diffusion.ddim_step(velocity, -noisy, angle_step)
            arrival = diffusion.ddim_step(noisy, middle, angle_step)
            return (arrival, angle - fraction * length, expected), (noisy, angle)

        schedule = jnp.asarray(fractions, jnp.float32), jnp.asarray(ratios, jnp.float32)
        carry = starts.noisy, starts.angle, jnp.zeros_like(starts.noisy)
        (noisy, angle, _), (visited, angles) = jax.lax.scan(step, carry, schedule)
        if self.span < diffusion.HALF_PI:
            angle = jnp.maximum(angle, 0.0)[:, None] * starts.is_new
            velocity = self._velocity(student, noisy, angle, batch, starts.guidance_scale)
            noisy = diffusion.velocity_to_clean(noisy, velocity, angle)
        return Trajectory(visited, angles, noisy)

    def _velocity(self, student: Params, noisy: Array, angle: Array, batch: Batch, scale: Array) -> Array:
        tokens = batch["semantic_tokens"]
        return denoiser.velocity(
            student, self.model, noisy, angle, tokens, len(noisy), batch["prefix_tokens"], scale
        )

    def evaluate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """The student's errors on a held-out batch at the usual guidance scale, whole windows from pi/2.

        "loss" is the mean of "loss_at_<angle>" of three points of the trajectory, its start the first of them.
        """
        count, frames, _ = batch["latents"].shape
        starts = Starts(
            noisy=jax.random.normal(key, batch["latents"].shape),
            angle=jnp.full((count,), diffusion.HALF_PI),
            is_new=jnp.ones((count, frames), bool),
            guidance_scale=jnp.full((count,), self.usual_guidance),
        )
        numbers = np.unique([0, self.teacher_steps // 3, 2 * self.teacher_steps // 3])
        points = jnp.tile(numbers[:, None], (1, count))
        errors = self._errors(params["base"], params["model"], batch, starts, points).mean(axis=(1, 2))
        covered = np.append(0.0, np.cumsum(diffusion.paper_schedule(self.teacher_steps)))[numbers]
        angles = diffusion.HALF_PI - covered * self.span / diffusion.HALF_PI
        at_angles = {f"loss_at_{angle:.1f}": error for angle, error in zip(angles, errors, strict=True)}
        return {"loss": errors.mean(), **at_angles}

    def finish(self, model: Params, batches: Iterator[Batch], key: PRNGKeyArray) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}


def _tile_conditions(batch: Batch, count: int) -> Batch:
    """The tokens of a batch, repeated `count` times."""
    return {name: jnp.tile(batch[name], (count, 1)) for name in ("semantic_tokens", "prefix_tokens")}
