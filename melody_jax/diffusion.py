"""Angle-parameterised diffusion (MeLoDy, section 4.1 and appendix): the mathematics alone, for any network.

Clean latents z and noise eps ~ N(0, I) are mixed by an angle delta in [0, pi/2], one angle per latent frame:

    noisy    z_delta = cos(delta) z   + sin(delta) eps
    velocity v       = cos(delta) eps - sin(delta) z        = d z_delta / d delta
    clean    z       = cos(delta) z_delta - sin(delta) v
    noise    eps     = sin(delta) z_delta + cos(delta) v

so (z_delta, v) is (z, eps) turned by delta; a deterministic DDIM step, which lowers the angle by omega, is a turn back:

    z_{delta - omega} = cos(omega) z_delta - sin(omega) v

A schedule is the steps omega_T, ..., omega_1 > 0 in the order they are taken; they sum to the starting angle, pi/2 for
pure noise. The paper's are omega_t = pi/(6T) + 2 pi t/(3T(T+1)): long where noise dominates, short at the end.

Training draws one angle for each of M chunks of a window (`sample_angles`), so that a window may hold finished
context (angle 0) beside new frames. Sampling with `is_new` leaves context where it is, to the bit: continuation and
inpainting are the same call.

Classifier-free guidance: v = g v(condition) + (1 - g) v(null).

Legend: B batch, L latent frames, D latent width, M chunks, T steps. Latents are (B, L, D); an `angle` argument is a
scalar, (L,) or (B, L). Angles stay float32 whatever the latents' dtype.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax.errors import UserError

HALF_PI = math.pi / 2


def uniform_schedule(steps: int) -> np.ndarray:
    """(T,) equal steps that sum to pi/2."""
    return np.full(steps, HALF_PI / steps)


def paper_schedule(steps: int) -> np.ndarray:
    """(T,) steps omega_T, ..., omega_1 of the paper's linear rule, first (largest) first; they sum to pi/2."""
    t = np.arange(steps, 0, -1)
    return math.pi / (6 * steps) + 2 * math.pi * t / (3 * steps * (steps + 1))


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {"paper": paper_schedule, "uniform": uniform_schedule}


def omegas(schedule: str, steps: int, start: float = HALF_PI) -> np.ndarray:
    """(T,) steps of the named schedule, scaled to begin at the angle `start` (below pi/2: a variation of latents)."""
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}: expected one of {', '.join(sorted(SCHEDULES))}")
    if steps < 1:
        raise UserError(f"cannot sample in {steps} steps: at least 1 is needed")
    if not 0.0 < start <= HALF_PI + 1e-9:
        raise UserError(f"starting angle {start} is outside (0, pi/2]")
    return SCHEDULES[schedule](steps) * (start / HALF_PI)


def angles(schedule: str, steps: int, start: float = HALF_PI) -> np.ndarray:
    """(T + 1,) angles that the named schedule visits, from `start` down to exactly 0."""
    return _remaining(omegas(schedule, steps, start))


def _remaining(steps: np.ndarray) -> np.ndarray:
    """Angle before each step and after the last: the sum of the steps still to be taken, which ends on exactly 0."""
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _turn(angle: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of a scalar, (L,) or (B, L) angle, broadcastable against (B, L, D)."""
    angle = jnp.asarray(angle, jnp.float32)[..., None]
    return jnp.cos(angle), jnp.sin(angle)


def corrupt(latents: jax.Array, noise: jax.Array, angle: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The noisy latents at `angle` and the velocity there, both (B, L, D)."""
    cos, sin = _turn(angle)
    return cos * latents + sin * noise, cos * noise - sin * latents


def velocity_to_clean(noisy: jax.Array, velocity: jax.Array, angle: jax.typing.ArrayLike) -> jax.Array:
    """The clean latents that a velocity implies."""
    cos, sin = _turn(angle)
    return cos * noisy - sin * velocity


def velocity_to_noise(noisy: jax.Array, velocity: jax.Array, angle: jax.typing.ArrayLike) -> jax.Array:
    """The noise that a velocity implies."""
    cos, sin = _turn(angle)
    return sin * noisy + cos * velocity


def clean_to_velocity(noisy: jax.Array, clean: jax.Array, angle: jax.typing.ArrayLike) -> jax.Array:
    """The velocity that an estimate of the clean latents implies; not defined at angle 0."""
    cos, sin = _turn(angle)
    return (cos * noisy - clean) / sin


def noise_to_velocity(noisy: jax.Array, noise: jax.Array, angle: jax.typing.ArrayLike) -> jax.Array:
    """The velocity that an estimate of the noise implies; not defined at angle pi/2."""
    cos, sin = _turn(angle)
    return (noise - sin * noisy) / cos


def ddim_step(noisy: jax.Array, velocity: jax.Array, omega: jax.typing.ArrayLike) -> jax.Array:
    """Latents with their angle lowered by `omega` (scalar, (L,) or (B, L)); frames with omega 0 keep every bit."""
    cos, sin = _turn(omega)
    return jnp.where(sin == 0, noisy, cos * noisy - sin * velocity)


def guide(conditional: jax.Array, null: jax.Array, scale: jax.typing.ArrayLike) -> jax.Array:
    """Classifier-free guidance; scale 1 is the conditional velocity, 0 the null one, above 1 extrapolates."""
    scale = jnp.asarray(scale, jnp.float32)
    return scale * conditional + (1 - scale) * null


def chunk_of_frame(frames: int, chunks: int) -> np.ndarray:
    """(L,) the chunk that each frame belongs to; chunk m starts at floor(m L / M)."""
    starts = np.arange(chunks) * frames // chunks
    return np.searchsorted(starts, np.arange(frames), side="right") - 1


def sample_angles(
    key: jax.Array,
    batch: int,
    frames: int,
    chunks: int,
    shared_probability: float = 0.0,
    clean_prefix_probability: float = 0.0,
    maximum: float = HALF_PI,
) -> jax.Array:
    """Training angles (B, L): uniform on [0, `maximum`], independent for each chunk (the paper).

    With the two probabilities an item instead looks like what sampling meets, which independent angles seldom do:
    `shared_probability`, one angle for the whole window (generation); `clean_prefix_probability`, 1 to M - 1 leading
    chunks at exactly angle 0 and one angle for the rest (continuation; a shared angle where M is 1).
    """
    keys = jax.random.split(key, 4)
    angle = jax.random.uniform(keys[0], (batch, chunks), maxval=maximum)
    shared = jnp.broadcast_to(jax.random.uniform(keys[1], (batch, 1), maxval=maximum), angle.shape)
    clean = jax.random.randint(keys[2], (batch, 1), min(1, chunks - 1), max(chunks, 1))
    prefix = jnp.where(jnp.arange(chunks) < clean, 0.0, shared)
    mode = jax.random.uniform(keys[3], (batch, 1))
    angle = jnp.where(mode < shared_probability + clean_prefix_probability, prefix, angle)
    angle = jnp.where(mode < shared_probability, shared, angle)
    return angle[:, chunk_of_frame(frames, chunks)]


Angles = Literal["uniform", "uniform_time", "logit_normal"]


def distribute(
    angle: jax.Array, kind: Angles, mean: float = 0.0, std: float = 1.0, maximum: float = HALF_PI
) -> jax.Array:
    """Uniform angles on [0, `maximum`] to others on it, in the same order; 0 stays exactly 0.

      uniform       as they are (the paper)
      uniform_time  the time t = sin / (cos + sin) of rectified flow is uniform
      logit_normal  t is logit-normal (Esser et al. 2024, arXiv 2403.03206): log(t / (1 - t)) = log tan(angle) is normal

    Raises:
        UserError: an unknown kind, or a deviation that is not above 0.
    """
    if kind not in get_args(Angles):
        raise UserError(f"unknown angles {kind!r}: expected one of {', '.join(get_args(Angles))}")
    if kind == "uniform":
        return angle
    if not std > 0:
        raise UserError(f"angle_std is {std}; it must be above 0")
    share = angle / maximum
    if kind == "uniform_time":
        return jnp.arctan2(share, 1 - share) * (maximum / HALF_PI)
    inside = jnp.clip(share, 1e-6, 1 - 1e-6)
    drawn = jnp.arctan(jnp.exp(mean + std * jax.scipy.special.ndtri(inside)))
    return jnp.where(angle > 0, drawn, 0.0) * (maximum / HALF_PI)


def drift_weight(angle: float, to: float) -> float:
    """What a clean estimate that grows by one unit a radian adds to a DDIM step from `angle` down to `to`, radians.

    Along the flow d(z / sin delta) / d delta = -z0(delta) / sin^2 delta, z0 the clean estimate. A constant z0 gives
    the DDIM step; z0 + (delta - angle) adds sin(to) times the integral of (delta - angle) / sin^2 delta, which is
    (to - angle) cos(to) + sin(to) ln(sin(angle) / sin(to)): finite at both ends, -angle at 0.
    """
    spread = math.sin(to) * math.log(math.sin(angle) / math.sin(to)) if to > 0 else 0.0
    return (to - angle) * math.cos(to) + spread


SOLVERS = ("ddim", "heun", "multistep", "pingpong")
"""How `sample` gets from one angle to the next, by name.

  ddim       the paper's: turns by the velocity; first order
  heun       looks at the angle it arrives at and corrects the step; second order, two passes a step but the last
  multistep  corrects by how the clean estimate moved since the last step; second order, one pass a step
  pingpong   estimates the clean latents and mixes them with fresh noise at the next angle; stochastic. For distilled
             networks: the mean that any other network estimates narrows the draws a little at every step
"""


def passes(solver: str, steps: int) -> int:
    """Evaluations of the velocity that `sample` needs. Raises `UserError` for an unknown solver."""
    if solver not in SOLVERS:
        raise UserError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    return 2 * steps - 1 if solver == "heun" else steps


def sample(
    velocity_fn: Callable[[jax.Array, jax.Array], jax.Array],
    noise: jax.Array,
    omegas: np.ndarray,
    is_new: jax.Array | None = None,
    solver: str = "ddim",
    noise_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Latents (B, L, D) from noise; guidance, tokens and parameters live in `velocity_fn`.

    velocity_fn(noisy (B, L, D), angle (B, L)) -> velocity (B, L, D).
    noise: N(0, I) in new frames, clean latents in context frames. For a variation, `corrupt` latents to the schedule's
        starting angle first.
    omegas: (T,) concrete steps in the order they are taken, see `omegas`.
    is_new: (L,) or (B, L) bool, the frames to generate; None is all. Frames outside keep angle 0 and every bit.
    solver: see `SOLVERS`. noise_fn(step) -> N(0, I) (B, L, D), for "pingpong" alone.

    The result is not clipped: the range of latents is the autoencoder's affair. Raises `UserError` for an unknown
    solver.
    """
    passes(solver, 1)
    new = (
        jnp.ones(noise.shape[:2], bool) if is_new is None else jnp.broadcast_to(is_new, noise.shape[:2]) != 0
    )

    def estimate(latents: jax.Array, angle: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Velocity and clean latents."""
        velocity = velocity_fn(latents, jnp.where(new, angle, 0.0)).astype(latents.dtype)
        return velocity, velocity_to_clean(latents, velocity, angle).astype(latents.dtype)

    def step(
        state: tuple[jax.Array, jax.Array], at: dict[str, jax.Array], corrects: bool = True
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """From latents and the clean estimate before them to the next."""
        latents, before = state
        velocity, clean = estimate(latents, at["angle"])
        if solver == "pingpong":
            assert noise_fn is not None, "pingpong draws noise at every step"
            arrived = corrupt(clean, noise_fn(at["number"]), at["to"])[0]
        else:
            arrived = ddim_step(latents, velocity, at["omega"])
        if solver == "multistep":
            drift = jnp.where(at["number"] > 0, (before - clean) / at["omega_before"], 0.0)
            arrived += at["drift_weight"] * drift
        if solver == "heun" and corrects:
            drift = (clean - estimate(arrived, at["to"])[1]) / at["omega"]
            arrived += at["drift_weight"] * drift
        return (jnp.where(new[..., None], arrived, latents).astype(latents.dtype), clean), None

    steps = _plan(omegas)
    if solver != "heun":
        return jax.lax.scan(step, (noise, noise), steps)[0][0]
    all_but_last, last = (
        jax.tree.map(lambda values, part=part: values[part], steps) for part in (slice(-1), -1)
    )
    state, _ = jax.lax.scan(step, (noise, noise), all_but_last)
    return step(state, last, corrects=False)[0][0]  # at angle 0 there is nothing left to look at


def _plan(omegas: np.ndarray) -> dict[str, jax.Array]:
    """What each step needs to know of the schedule, by name, (T,) each."""
    visited = _remaining(omegas)
    plan = {
        "angle": visited[:-1],
        "to": visited[1:],
        "omega": np.asarray(omegas),
        "omega_before": np.append(1.0, omegas[:-1]),
        "drift_weight": np.array([drift_weight(angle, to) for angle, to in itertools.pairwise(visited)]),
    }
    return {name: jnp.asarray(values, jnp.float32) for name, values in plan.items()} | {
        "number": jnp.arange(len(omegas))
    }
