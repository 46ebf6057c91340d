"""Angular DDIM against diffusers' DDIM under v-prediction, at the alphas that the angles imply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax import diffusion

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
diffusers = pytest.importorskip("diffusers", reason="parity needs: pip install melody_jax[parity]")


@pytest.mark.parametrize("schedule", ["paper", "uniform"])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_trajectory(schedule: str, steps: int, compare) -> None:
    """A velocity that depends on the latents and on the angle, from the same noise, to the last step."""
    matrix = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(2, 6, 4)).astype(np.float32)
    visited = diffusion.schedule_angles(schedule, steps)

    def velocity(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        return jnp.tanh(noisy @ matrix + jnp.broadcast_to(angle, noisy.shape[:2])[..., None])

    ours = diffusion.sample(velocity, jnp.asarray(noise), diffusion.angle_steps(schedule, steps))

    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=steps, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.alphas_cumprod = torch.tensor(np.cos(visited[:-1][::-1].astype(np.float64)) ** 2)
    scheduler.set_timesteps(steps)
    theirs = torch.tensor(noise, dtype=torch.float64)
    for angle, timestep in zip(visited, scheduler.timesteps, strict=False):
        predicted = torch.tanh(theirs @ torch.tensor(matrix, dtype=torch.float64) + float(angle))
        theirs = scheduler.step(predicted, int(timestep), theirs).prev_sample
    compare(ours, theirs)
