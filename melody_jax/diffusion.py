"""Angle-parameterised diffusion (MeLoDy, arXiv 2305.15719, section 4.1 and appendix): the mathematics, for any network.

Clean latents z and noise eps ~ N(0, I) are mixed by an angle delta in [0, pi/2], one angle per latent frame:

    noisy    z_delta = cos(delta) z   + sin(delta) eps
    velocity v       = cos(delta) eps - sin(delta) z        = d z_delta / d delta
    clean    z       = cos(delta) z_delta - sin(delta) v
    noise    eps     = sin(delta) z_delta + cos(delta) v

(z_delta, v) is (z, eps) rotated by delta. A deterministic DDIM step lowers the angle by omega and rotates back:

    z_{delta - omega} = cos(omega) z_delta - sin(omega) v

A schedule is the angle steps omega_T, ..., omega_1 > 0 in the order they are taken. They sum to the starting angle,
pi/2 for pure noise. In the paper's schedule omega_t = pi/(6T) + 2 pi t/(3T(T+1)): steps are long where noise dominates
and short at the end.

Training draws one angle per chunk of a window (`sample_angles`), so that a window may hold finished context (angle 0)
next to new frames. Sampling with `is_new` leaves context frames bit-identical, so continuation and inpainting are
the same call.

Legend: B batch, L latent frames, D latent width, M chunks, T steps. Latents are (B, L, D); an `angle` argument is a
scalar, (L,) or (B, L), in radians. Angles are float32 for any dtype of the latents.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from melody_jax.errors import UserError

HALF_PI = math.pi / 2

Latents = Float[Array, "... L D"]
LatentsLike = Float[Array | np.ndarray, "... L D"]
VelocityFn = Callable[[Array, Array], Array]
"""(noisy (B, L, D), angle (B, L)) to the velocity (B, L, D)."""
NoiseFn = Callable[[Array], Array]
"""Index of a step to N(0, I) (B, L, D)."""


def uniform_schedule(steps: int) -> Float[np.ndarray, " {steps}"]:
    """(T,) equal angle steps that sum to pi/2."""
    return np.full(steps, HALF_PI / steps)


def paper_schedule(steps: int) -> Float[np.ndarray, " {steps}"]:
    """(T,) angle steps omega_T, ..., omega_1 of the paper's linear rule, largest first; they sum to pi/2."""
    t = np.arange(steps, 0, -1)
    return math.pi / (6 * steps) + 2 * math.pi * t / (3 * steps * (steps + 1))


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {"paper": paper_schedule, "uniform": uniform_schedule}
"""Name -> function from the number of steps to the angle steps."""


def angle_steps(schedule: str, steps: int, start: float = HALF_PI) -> Float[np.ndarray, " {steps}"]:
    """(T,) angle steps of the named schedule, scaled to begin at the angle `start` (below pi/2 for a variation).

    Raises:
        UserError: an unknown schedule, less than one step, or a starting angle outside (0, pi/2].
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}: expected one of {', '.join(sorted(SCHEDULES))}")
    if steps < 1:
        raise UserError(f"cannot sample in {steps} steps: at least 1 is needed")
    if not 0.0 < start <= HALF_PI + 1e-9:
        raise UserError(f"starting angle {start} is outside (0, pi/2]")
    return SCHEDULES[schedule](steps) * (start / HALF_PI)


def schedule_angles(schedule: str, steps: int, start: float = HALF_PI) -> Float[np.ndarray, " {steps}+1"]:
    """(T + 1,) angles that the named schedule visits, from `start` down to exactly 0."""
    return _visited_angles(angle_steps(schedule, steps, start))


def _visited_angles(angle_steps: np.ndarray) -> np.ndarray:
    """Angle before each step and after the last: the sum of the remaining steps, which ends at exactly 0."""
    return np.append(np.cumsum(angle_steps[::-1])[::-1], 0.0)


def cos_sin(angle: ArrayLike) -> tuple[Array, Array]:
    """Cosine and sine of a scalar, (L,) or (B, L) angle, broadcastable against (B, L, D)."""
    angle = jnp.asarray(angle, jnp.float32)[..., None]
    return jnp.cos(angle), jnp.sin(angle)


def corrupt(latents: LatentsLike, noise: LatentsLike, angle: ArrayLike) -> tuple[Latents, Latents]:
    """The noisy latents at `angle` and their velocity, both (B, L, D)."""
    cos, sin = cos_sin(angle)
    return cos * latents + sin * noise, cos * noise - sin * latents


def velocity_to_clean(noisy: LatentsLike, velocity: LatentsLike, angle: ArrayLike) -> Latents:
    """The clean latents that a velocity implies."""
    cos, sin = cos_sin(angle)
    return cos * noisy - sin * velocity


def velocity_to_noise(noisy: LatentsLike, velocity: LatentsLike, angle: ArrayLike) -> Latents:
    """The noise that a velocity implies."""
    cos, sin = cos_sin(angle)
    return sin * noisy + cos * velocity


def clean_to_velocity(noisy: LatentsLike, clean: LatentsLike, angle: ArrayLike) -> Latents:
    """The velocity that an estimate of the clean latents implies; undefined at angle 0."""
    cos, sin = cos_sin(angle)
    return (cos * noisy - clean) / sin


def noise_to_velocity(noisy: LatentsLike, noise: LatentsLike, angle: ArrayLike) -> Latents:
    """The velocity that an estimate of the noise implies; undefined at angle pi/2."""
    cos, sin = cos_sin(angle)
    return jnp.divide(noise - sin * noisy, cos)


def ddim_step(noisy: LatentsLike, velocity: LatentsLike, angle_step: ArrayLike) -> Latents:
    """Latents with their angle lowered by `angle_step`; frames whose step is 0 stay bit-identical."""
    cos, sin = cos_sin(angle_step)
    return jnp.where(sin == 0, noisy, cos * noisy - sin * velocity)


def chunk_of_frame(frames: int, chunks: int) -> Int[np.ndarray, " L"]:
    """(L,) index of the chunk of each frame; chunk m starts at floor(m L / M)."""
    starts = np.arange(chunks) * frames // chunks
    return np.searchsorted(starts, np.arange(frames), side="right") - 1


def sample_angles(
    key: PRNGKeyArray,
    batch: int,
    frames: int,
    chunks: int,
    shared_probability: float = 0.0,
    clean_prefix_probability: float = 0.0,
) -> Float[Array, "B L"]:
    """Training angles (B, L): uniform on [0, pi/2], independent per chunk as in the paper.

    Two probabilities mix in combinations of angles that sampling needs and independent draws seldom produce. With
    `shared_probability` an item has one angle for the whole window (generation). With `clean_prefix_probability` its
    first 1 to M - 1 chunks are at exactly angle 0 and the rest shares one angle (continuation; with M = 1, one shared
    angle).
    """
    keys = jax.random.split(key, 4)
    angle = jax.random.uniform(keys[0], (batch, chunks), maxval=HALF_PI)
    shared = jnp.broadcast_to(jax.random.uniform(keys[1], (batch, 1), maxval=HALF_PI), angle.shape)
    clean = jax.random.randint(keys[2], (batch, 1), min(1, chunks - 1), max(chunks, 1))
    prefix = jnp.where(jnp.arange(chunks) < clean, 0.0, shared)
    mode = jax.random.uniform(keys[3], (batch, 1))
    angle = jnp.where(mode < shared_probability + clean_prefix_probability, prefix, angle)
    angle = jnp.where(mode < shared_probability, shared, angle)
    return angle[:, chunk_of_frame(frames, chunks)]


AngleDistribution = Literal["uniform", "uniform_time", "logit_normal"]


def warp_angles(
    angle: Float[Array, "*shape"],
    distribution: str,
    mean: float = 0.0,
    std: float = 1.0,
) -> Float[Array, "*shape"]:
    """Maps uniform angles on [0, pi/2] monotonically to another distribution on it; 0 stays exactly 0.

      uniform       unchanged (the paper)
      uniform_time  the time t = sin / (cos + sin) of rectified flow is uniform
      logit_normal  t is logit-normal (Esser et al. 2024, arXiv 2403.03206): log(t / (1 - t)) = log tan(angle) is normal

    Raises:
        UserError: an unknown distribution, or a standard deviation that is not above 0.
    """
    if distribution not in get_args(AngleDistribution):
        names = ", ".join(get_args(AngleDistribution))
        raise UserError(f"unknown angles {distribution!r}: expected one of {names}")
    if distribution == "uniform":
        return angle
    if not std > 0:
        raise UserError(f"angle_std is {std}; it must be above 0")
    quantile = angle / HALF_PI
    if distribution == "uniform_time":
        return jnp.arctan2(quantile, 1 - quantile)
    interior = jnp.clip(quantile, 1e-6, 1 - 1e-6)
    warped = jnp.arctan(jnp.exp(mean + std * jax.scipy.special.ndtri(interior)))
    return jnp.where(angle > 0, warped, 0.0)


def drift_weight(angle: float, next_angle: float) -> float:
    """Correction of a DDIM step from `angle` to `next_angle` if the clean estimate grows by one unit per radian.

    Along the flow d(z / sin delta) / d delta = -z0(delta) / sin^2 delta, z0 the clean estimate. A constant z0 gives the
    DDIM step. z0 + (delta - angle) adds sin(next_angle) times the integral of (delta - angle) / sin^2 delta, which is
    (next_angle - angle) cos(next_angle) + sin(next_angle) ln(sin(angle) / sin(next_angle)): finite at both ends, and
    -angle at 0.
    """
    log_term = 0.0
    if next_angle > 0:
        log_term = math.sin(next_angle) * math.log(math.sin(angle) / math.sin(next_angle))
    return (next_angle - angle) * math.cos(next_angle) + log_term


class Step(NamedTuple):
    """One step of a schedule, scalars each; `step_table` stacks all of them, (T,) each."""

    angle: Float[Array, "*T"]
    """Angle before the step, radians."""
    next_angle: Float[Array, "*T"]
    """Angle after the step."""
    angle_step: Float[Array, "*T"]
    """angle - next_angle."""
    previous_angle_step: Float[Array, "*T"]
    """`angle_step` of the step before; 1 for the first."""
    drift_weight: Float[Array, "*T"]
    """See `drift_weight`."""
    index: Int[Array, "*T"]
    """0 for the first step."""


def step_table(angle_steps: Float[np.ndarray, " T"]) -> Step:
    """The steps of a schedule, stacked along the first axis."""
    visited = _visited_angles(angle_steps)
    drift_weights = np.array([drift_weight(*pair) for pair in itertools.pairwise(visited)])
    return Step(
        angle=jnp.asarray(visited[:-1], jnp.float32),
        next_angle=jnp.asarray(visited[1:], jnp.float32),
        angle_step=jnp.asarray(angle_steps, jnp.float32),
        previous_angle_step=jnp.asarray(np.append(1.0, angle_steps[:-1]), jnp.float32),
        drift_weight=jnp.asarray(drift_weights, jnp.float32),
        index=jnp.arange(len(angle_steps)),
    )


class Prediction(NamedTuple):
    """What the network predicts for noisy latents."""

    velocity: Latents
    """(B, L, D)."""
    clean: Latents
    """(B, L, D)."""


class StepInputs(NamedTuple):
    """Everything that a solver may use in one step."""

    step: Step
    """Position in the schedule; scalars."""
    latents: Latents
    """(B, L, D) at `step.angle`."""
    prediction: Prediction
    """Of `latents`."""
    previous_clean: Latents
    """(B, L, D) clean estimate of the step before."""
    predict: Callable[[Array, Array], Prediction]
    """Latents (B, L, D) and their scalar angle to the prediction, by one more evaluation of the velocity, which sees
    the context as it is."""
    noise_fn: NoiseFn | None
    """Fresh noise, see `sample`."""


def _ddim(inputs: StepInputs) -> Latents:
    return ddim_step(inputs.latents, inputs.prediction.velocity, inputs.step.angle_step)


def _heun(inputs: StepInputs) -> Latents:
    step = inputs.step
    arrival = _ddim(inputs)
    drift = (inputs.prediction.clean - inputs.predict(arrival, step.next_angle).clean) / step.angle_step
    return arrival + step.drift_weight * drift


def _multistep(inputs: StepInputs) -> Latents:
    step = inputs.step
    arrival = _ddim(inputs)
    slope = (inputs.previous_clean - inputs.prediction.clean) / step.previous_angle_step
    return arrival + step.drift_weight * jnp.where(step.index > 0, slope, 0.0)


def _pingpong(inputs: StepInputs) -> Latents:
    assert inputs.noise_fn is not None, "pingpong draws noise at every step: noise_fn is needed"
    step = inputs.step
    return corrupt(inputs.prediction.clean, inputs.noise_fn(step.index), step.next_angle)[0]


class Solver(NamedTuple):
    """A method of advancing from one angle of a schedule to the next."""

    nfe_per_step: int
    """Evaluations of the velocity per step."""
    step: Callable[[StepInputs], Array]
    """To the latents (B, L, D) at `step.next_angle`."""
    last_step: Callable[[StepInputs], Array] | None = None
    """The step to angle 0 if it differs from the others: one evaluation. None: the same as the others."""


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(1, _ddim),
    "heun": Solver(2, _heun, last_step=_ddim),
    "multistep": Solver(1, _multistep),
    "pingpong": Solver(1, _pingpong),
}
"""Name -> solver.

  ddim       the paper's: rotates by the velocity; first order
  heun       evaluates the velocity at the next angle too and corrects the step; second order, two evaluations per step
             except the last, since no velocity is needed at angle 0
  multistep  corrects by the change of the clean estimate since the previous step; second order, one evaluation per step
  pingpong   estimates the clean latents and mixes them with fresh noise at the next angle; stochastic. For distilled
             networks: others estimate a mean, which narrows the distribution of the samples at every step
"""


def nfe(solver: str, steps: int) -> int:
    """Number of velocity evaluations that `sample` needs. Raises `UserError` for an unknown solver."""
    chosen = _solver(solver)
    if chosen.last_step is None:
        return chosen.nfe_per_step * steps
    return chosen.nfe_per_step * (steps - 1) + 1


def _solver(name: str) -> Solver:
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def sample(
    velocity_fn: VelocityFn,
    noise: Latents,
    angle_steps: Float[np.ndarray, " T"],
    is_new: Bool[Array | np.ndarray, "*B L"] | None = None,
    solver: str = "ddim",
    noise_fn: NoiseFn | None = None,
) -> Latents:
    """Latents (B, L, D) from noise; guidance, tokens and parameters live in `velocity_fn`.

    velocity_fn(noisy (B, L, D), angle (B, L)) -> velocity (B, L, D).
    noise: N(0, I) in new frames, clean latents in context frames. For a variation, `corrupt` latents to the schedule's
        starting angle first.
    angle_steps: (T,) concrete steps in the order they are taken, see the function `angle_steps`.
    is_new: (L,) or (B, L) bool, the frames to generate; None is all. Other frames have angle 0 and stay bit-identical.
    solver: see `SOLVERS`. noise_fn(step index) -> N(0, I) (B, L, D), for "pingpong" only.

    The result is not clipped: the autoencoder defines the range of latents. Raises `UserError` for an unknown solver.
    """
    chosen = _solver(solver)
    new = jnp.ones(noise.shape[:2], bool)
    if is_new is not None:
        new = jnp.broadcast_to(is_new, noise.shape[:2]) != 0

    def predict(latents: Array, angle: Array) -> Prediction:
        velocity = velocity_fn(latents, jnp.where(new, angle, 0.0)).astype(latents.dtype)
        return Prediction(velocity, velocity_to_clean(latents, velocity, angle).astype(latents.dtype))

    def advance(
        carry: tuple[Array, Array], step: Step, step_fn: Callable[[StepInputs], Array]
    ) -> tuple[Array, Array]:
        """From (latents, clean estimate of the step before) to the next."""
        latents, previous_clean = carry
        prediction = predict(latents, step.angle)

        def with_context(moved: Array) -> Array:
            return jnp.where(new[..., None], moved, latents).astype(latents.dtype)

        def predict_again(moved: Array, angle: Array) -> Prediction:
            return predict(with_context(moved), angle)

        inputs = StepInputs(step, latents, prediction, previous_clean, predict_again, noise_fn)
        return with_context(step_fn(inputs)), prediction.clean

    def body(carry: tuple[Array, Array], step: Step) -> tuple[tuple[Array, Array], None]:
        return advance(carry, step, chosen.step), None

    steps = step_table(angle_steps)
    if chosen.last_step is None:
        return jax.lax.scan(body, (noise, noise), steps)[0][0]
    carry, _ = jax.lax.scan(body, (noise, noise), jax.tree.map(lambda column: column[:-1], steps))
    last = jax.tree.map(lambda column: column[-1], steps)
    return advance(carry, last, chosen.last_step)[0]
