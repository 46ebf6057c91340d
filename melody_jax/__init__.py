"""MeLoDy ("Efficient Neural Music Generation", NeurIPS 2023) in JAX: text in, music out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melody_jax.sampling.cascade import Melody, load

__version__ = "0.1.0"
__all__ = ["Melody", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Imported on first use: composing and reading configs need no sampler, and JAX takes a second to start.
    if name in ("Melody", "load"):
        from melody_jax.sampling import cascade

        return getattr(cascade, name)
    raise AttributeError(f"module 'melody_jax' has no attribute {name!r}")
