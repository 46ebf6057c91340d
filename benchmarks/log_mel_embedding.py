"""A minimal user embedding: mean and standard deviation of 32 log-mel bands, without a network.

    melody evaluate --embedding benchmarks/log_mel_embedding.py ...

melody_jax/evaluation/embedding.py describes such files.
"""

import numpy as np

from melody_jax.evaluation.reconstruction import log_mel


class LogMel:
    """float32 (B, T) at 24 kHz -> (B, 64), nepers."""

    name = "log-mel statistics"
    files = ()
    sample_rate = 24_000

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        level = log_mel(waves, n_mels=32)
        return np.concatenate([level.mean(axis=1), level.std(axis=1)], axis=1)


def embedding() -> LogMel:
    """The function that `melody evaluate` calls."""
    return LogMel()
