"""The closed forms of melody_jax/diffusion.py, written a second time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax import diffusion
from melody_jax.errors import UserError


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", ["paper", "uniform"])
@pytest.mark.parametrize("steps", [1, 5, 10, 20])
def test_schedules_sum_to_a_right_angle(name, steps):
    angle_steps = diffusion.angle_steps(name, steps)
    assert angle_steps.shape == (steps,)
    assert angle_steps.sum() == pytest.approx(math.pi / 2)
    angles = diffusion.schedule_angles(name, steps)
    assert angles[0] == pytest.approx(math.pi / 2)
    assert angles[-1] == 0.0
    np.testing.assert_allclose(-np.diff(angles), angle_steps)


def test_paper_schedule_has_the_published_values():
    np.testing.assert_allclose(
        diffusion.schedule_angles("paper", 5), [1.571, 1.117, 0.733, 0.419, 0.175, 0], atol=6e-4
    )
    first, last = diffusion.angle_steps("paper", 20)[[0, -1]]
    assert (first, last) == (pytest.approx(0.1259, abs=1e-4), pytest.approx(0.0312, abs=1e-4))


def test_schedule_from_a_smaller_angle_keeps_its_shape():
    part = diffusion.angle_steps("paper", 6, start=0.5)
    assert part.sum() == pytest.approx(0.5)
    np.testing.assert_allclose(
        part / part[0], diffusion.angle_steps("paper", 6) / diffusion.angle_steps("paper", 6)[0]
    )


@pytest.mark.parametrize(
    ("name", "steps", "start"), [("cosine", 5, 1.0), ("paper", 0, 1.0), ("paper", 5, 2.0)]
)
def test_impossible_schedules_are_refused(name, steps, start):
    with pytest.raises(UserError):
        diffusion.angle_steps(name, steps, start)


@pytest.mark.parametrize("shape", [(), (6,), (2, 6)])
def test_corruption_is_inverted_by_the_conversions(shape):
    clean, noise = normal(0, 2, 6, 3), normal(1, 2, 6, 3)
    angle = jax.random.uniform(jax.random.key(2), shape, minval=0.2, maxval=1.4)
    noisy, velocity = diffusion.corrupt(clean, noise, angle)
    np.testing.assert_allclose(diffusion.velocity_to_clean(noisy, velocity, angle), clean, atol=1e-6)
    np.testing.assert_allclose(diffusion.velocity_to_noise(noisy, velocity, angle), noise, atol=1e-6)
    np.testing.assert_allclose(diffusion.clean_to_velocity(noisy, clean, angle), velocity, atol=1e-5)
    np.testing.assert_allclose(diffusion.noise_to_velocity(noisy, noise, angle), velocity, atol=1e-5)


def test_velocity_is_the_derivative_of_the_noisy_latents():
    clean, noise = normal(0, 1, 4, 2), normal(1, 1, 4, 2)
    _, slope = jax.jvp(
        lambda a: diffusion.corrupt(clean, noise, a)[0], (jnp.float32(0.7),), (jnp.float32(1.0),)
    )
    np.testing.assert_allclose(slope, diffusion.corrupt(clean, noise, 0.7)[1], atol=1e-6)


def test_one_angle_is_plain_velocity_diffusion():
    """With M = 1 the frame-wise corruption is cos(pi t / 2), sin(pi t / 2) on the whole item."""
    angle = diffusion.sample_angles(jax.random.key(0), 3, 10, 1)
    np.testing.assert_array_equal(angle, jnp.broadcast_to(angle[:, :1], angle.shape))
    clean, noise = normal(0, 3, 10, 2), normal(1, 3, 10, 2)
    t = np.asarray(angle[:, 0]) / (math.pi / 2)
    alpha, sigma = (f(math.pi * t / 2)[:, None, None] for f in (np.cos, np.sin))
    noisy, velocity = diffusion.corrupt(clean, noise, angle)
    np.testing.assert_allclose(noisy, alpha * clean + sigma * noise, atol=1e-6)
    np.testing.assert_allclose(velocity, alpha * noise - sigma * clean, atol=1e-6)


def test_ddim_step_equals_the_form_by_clean_and_noise():
    noisy, velocity, angle, angle_step = normal(0, 2, 5, 3), normal(1, 2, 5, 3), 1.1, 0.3
    clean = math.cos(angle) * noisy - math.sin(angle) * velocity
    noise = math.sin(angle) * noisy + math.cos(angle) * velocity
    expected = math.cos(angle - angle_step) * clean + math.sin(angle - angle_step) * noise
    np.testing.assert_allclose(diffusion.ddim_step(noisy, velocity, angle_step), expected, atol=1e-6)


def test_chunks_start_at_floor():
    chunk = diffusion.chunk_of_frame(10, 4)
    assert [int(np.argmax(chunk == m)) for m in range(4)] == [0, 2, 5, 7]


def test_independent_angles_fill_the_range():
    angle = np.asarray(diffusion.sample_angles(jax.random.key(0), 2000, 8, 4))
    assert angle.shape == (2000, 8)
    np.testing.assert_array_equal(angle[:, 0::2], angle[:, 1::2])
    chunks = angle[:, ::2]
    assert 0 <= chunks.min() < 0.01
    assert math.pi / 2 - 0.01 < chunks.max() <= math.pi / 2
    assert np.abs(np.corrcoef(chunks.T) - np.eye(4)).max() < 0.1


def test_angle_modes_come_in_the_configured_shares():
    angle = np.asarray(diffusion.sample_angles(jax.random.key(1), 4000, 4, 4, 0.3, 0.2))
    shared = (angle == angle[:, :1]).all(axis=1)
    prefix = angle[:, 0] == 0
    assert shared.mean() == pytest.approx(0.3, abs=0.03)
    assert prefix.mean() == pytest.approx(0.2, abs=0.03)
    for row in angle[prefix]:
        new = row[row > 0]
        assert 1 <= len(new) <= 3
        assert (new == new[0]).all()
        assert (row[: 4 - len(new)] == 0).all()


def test_perfect_velocity_recovers_the_latents_in_one_step_and_in_many():
    clean = normal(0, 2, 6, 3)

    def oracle(noisy, angle):
        noise = (noisy - jnp.cos(angle)[..., None] * clean) / jnp.sin(angle)[..., None]
        return diffusion.corrupt(clean, noise, angle)[1]

    for steps in (1, 7):
        result = jax.jit(lambda z, n=steps: diffusion.sample(oracle, z, diffusion.angle_steps("paper", n)))(
            normal(1, 2, 6, 3)
        )
        np.testing.assert_allclose(result, clean, atol=1e-5)


def test_sampler_visits_the_schedule():
    """With a velocity that depends on the angle alone the result has a closed form."""
    angle_steps = diffusion.angle_steps("paper", 4)
    noise = normal(0, 1, 3, 2)
    angles = diffusion.schedule_angles("paper", 4)
    expected = np.asarray(noise)
    for angle, angle_step in zip(angles[:-1], angle_steps, strict=True):
        expected = math.cos(angle_step) * expected - math.sin(angle_step) * angle**2
    result = diffusion.sample(lambda z, a: jnp.broadcast_to(a[..., None] ** 2, z.shape), noise, angle_steps)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def mixture_velocity(noisy, angle):
    """The exact velocity where latents are -1 or 1 with a deviation of 0.3, a half each."""
    cos, sin = jnp.cos(angle)[..., None], jnp.sin(angle)[..., None]
    variance = 0.09 * cos**2 + sin**2
    share = jax.nn.sigmoid(2 * cos * noisy / variance)

    def mean(mode):
        return mode + 0.09 * cos / variance * (noisy - cos * mode)

    clean = share * mean(1.0) + (1 - share) * mean(-1.0)
    return jnp.where(sin > 0, diffusion.clean_to_velocity(noisy, clean, angle), 0.0)


def test_orders_of_the_solvers():
    noise = normal(0, 4, 64, 2)

    def solve(steps, solver):
        return diffusion.sample(
            mixture_velocity, noise, diffusion.angle_steps("uniform", steps), solver=solver
        )

    truth = solve(1000, "ddim")
    error = {
        s: [float(jnp.abs(solve(n, s) - truth).mean()) for n in (10, 40)]
        for s in ("ddim", "heun", "multistep")
    }
    assert (
        3 < error["ddim"][0] / error["ddim"][1] < 6
    )  # first order: a quarter of the step, a quarter of the error
    assert error["heun"][0] / error["heun"][1] > 6
    assert error["multistep"][1] < 0.5 * error["ddim"][1]
    assert error["heun"][1] < 0.5 * error["ddim"][1]
    assert [diffusion.nfe(solver, 5) for solver in diffusion.SOLVERS] == [5, 9, 5, 5]
    with pytest.raises(UserError, match="'euler'"):
        solve(2, "euler")


def test_pingpong_draws_from_the_data():
    noise, key = normal(0, 64, 64, 1), jax.random.key(9)

    def later(step):
        return jax.random.normal(jax.random.fold_in(key, step), noise.shape)

    def share(solver, steps, **extra):
        samples = diffusion.sample(
            mixture_velocity, noise, diffusion.angle_steps("uniform", steps), solver=solver, **extra
        )
        return np.sqrt(np.mean((np.abs(np.asarray(samples)) - 1) ** 2))

    # one step gives the mean of all data, 0; a mean instead of a draw at every step narrows the 0.3 to 0.2
    assert share("pingpong", 1, noise_fn=later) == pytest.approx(1, abs=0.02)
    assert share("pingpong", 40, noise_fn=later) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("solver", diffusion.SOLVERS)
def test_every_solver_recovers_a_known_clip(solver):
    clean, noise = normal(0, 2, 6, 3), normal(1, 2, 6, 3)

    def oracle(noisy, angle):
        safe = jnp.where(angle > 0, angle, 1.0)
        return jnp.where(angle[..., None] > 0, diffusion.clean_to_velocity(noisy, clean, safe), 0.0)

    result = diffusion.sample(
        oracle, noise, diffusion.angle_steps("paper", 3), solver=solver, noise_fn=lambda step: noise * step
    )
    np.testing.assert_allclose(result, clean, atol=1e-5)


@pytest.mark.parametrize("solver", diffusion.SOLVERS)
@pytest.mark.parametrize("mask", [(0, 0, 1, 1, 0, 1), ((0, 0, 1, 1, 0, 1), (1, 1, 1, 0, 0, 0))])
def test_context_keeps_every_bit_and_sees_angle_zero(mask, solver):
    mask = np.array(mask, bool)
    window = normal(0, 2, 6, 3)

    seen: list[np.ndarray] = []

    def velocity(z, angle):
        is_same = (z == window) | jnp.asarray(np.broadcast_to(mask, (2, 6)))[..., None]
        jax.debug.callback(lambda same: seen.append(np.asarray(same)), is_same)
        return jnp.where(angle[..., None] == 0, jnp.inf, z * angle[..., None])

    result = diffusion.sample(
        velocity, window, diffusion.angle_steps("uniform", 3), mask, solver, lambda step: normal(7, 2, 6, 3)
    )
    context = ~np.broadcast_to(mask, (2, 6))
    assert all(is_same.all() for is_same in seen), "an evaluation saw a context that had moved"
    np.testing.assert_array_equal(np.asarray(result)[context], np.asarray(window)[context])
    assert np.isfinite(result).all()
    assert (np.asarray(result)[~context] != np.asarray(window)[~context]).all()
