"""MeLoDy ("Efficient Neural Music Generation", NeurIPS 2023) in JAX: text in, music out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melody_jax.sampling.cascade import Melody
    from melody_jax.systems import load

__version__ = "0.1.0"
__all__ = ["Melody", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Imported on first use: composing and reading configs need no sampler, and JAX takes a second to start.
    if name == "Melody":
        from melody_jax.sampling.cascade import Melody

        return Melody
    if name == "load":
        from melody_jax.systems import load

        return load
    raise AttributeError(f"module 'melody_jax' has no attribute {name!r}")
