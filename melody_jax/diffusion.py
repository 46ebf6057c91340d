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

import math
from collections.abc import Callable

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


def clean_drift(angle: float, to: float) -> float:
    """What a steady drift of the clean estimate, one unit a radian, adds to a DDIM step from `angle` to `to`, radians.

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
    new = jnp.ones(noise.shape[:2], bool) if is_new is None else jnp.broadcast_to(is_new, noise.shape[:2]) != 0
    visited = _remaining(omegas)

    def velocity(latents: jax.Array, angle: jax.typing.ArrayLike) -> jax.Array:
        return velocity_fn(latents, jnp.where(new, angle, 0.0)).astype(latents.dtype)

    def turn(latents: jax.Array, velocity: jax.Array, omega: jax.typing.ArrayLike) -> jax.Array:
        return ddim_step(latents, velocity, jnp.where(new, omega, 0.0)).astype(latents.dtype)

    def ddim(latents: jax.Array, at: dict[str, jax.Array]) -> jax.Array:
        return turn(latents, velocity(latents, at["angle"]), at["omega"])

    def heun(latents: jax.Array, at: dict[str, jax.Array]) -> jax.Array:
        first = velocity(latents, at["angle"])
        arrived = turn(latents, first, at["omega"])
        moved = velocity_to_clean(arrived, velocity(arrived, at["to"]), at["to"])
        moved -= velocity_to_clean(latents, first, at["angle"])
        return jnp.where(new[..., None], arrived - at["drift"] / at["omega"] * moved, arrived)

    def pingpong(latents: jax.Array, at: dict[str, jax.Array]) -> jax.Array:
        assert noise_fn is not None, "pingpong draws noise at every step"
        clean = velocity_to_clean(latents, velocity(latents, at["angle"]), at["angle"])
        return jnp.where(new[..., None], corrupt(clean, noise_fn(at["step"]), at["to"])[0], latents)

    def multistep(state: tuple[jax.Array, jax.Array], at: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        latents, before = state
        there = velocity(latents, at["angle"])
        clean = velocity_to_clean(latents, there, at["angle"])
        arrived = turn(latents, there, at["omega"])
        corrected = arrived - at["drift"] / at["omega_before"] * (clean - before)
        return jnp.where(new[..., None] & (at["step"] > 0), corrected, arrived), clean

    turns = {
        "angle": visited[:-1],
        "to": visited[1:],
        "omega": np.asarray(omegas),
        "omega_before": np.append(1.0, omegas[:-1]),
        "drift": np.array([clean_drift(angle, to) for angle, to in zip(visited[:-1], visited[1:], strict=True)]),
    }
    turns = {name: jnp.asarray(values, jnp.float32) for name, values in turns.items()}
    turns["step"] = jnp.arange(len(omegas))
    if solver == "multistep":
        return jax.lax.scan(lambda state, at: (multistep(state, at), None), (noise, noise), turns)[0][0]
    one = {"ddim": ddim, "heun": heun, "pingpong": pingpong}[solver]
    if solver == "heun":  # at angle 0 there is nothing to correct
        last = jax.tree.map(lambda values: values[-1], turns)
        turns = jax.tree.map(lambda values: values[:-1], turns)
        latents = jax.lax.scan(lambda latents, at: (heun(latents, at), None), noise, turns)[0]
        return ddim(latents, last)
    return jax.lax.scan(lambda latents, at: (one(latents, at), None), noise, turns)[0]
