"""The peak FLOP/s of a device, which training's utilisation (MFU) is relative to."""

import time
from functools import lru_cache

import jax
import jax.numpy as jnp

from melody_jax.chips import CHIPS

TPUS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
"""JAX's names of the chips of `chips.py`."""


@lru_cache(maxsize=1)
def peak_flops() -> float:
    """FLOP/s of this process's first device: the published bfloat16 peak for a TPU, a measurement for other devices."""
    device = jax.local_devices()[0]
    return CHIPS[TPUS[device.device_kind]].flops if device.device_kind in TPUS else measured_flops()


def measured_flops(repeats: int = 3) -> float:
    """FLOP/s of the fastest of a few large matrix products: float32 on CPUs, bfloat16 on other devices."""
    device = jax.local_devices()[0]
    is_cpu = device.platform == "cpu"
    size = 2048 if is_cpu else 8192
    dtype = jnp.float32 if is_cpu else jnp.bfloat16
    matrix = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
