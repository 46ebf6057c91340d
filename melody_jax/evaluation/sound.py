"""A sound with its format, for measures that hear it as it is and for those that hear 24 kHz mono."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from melody_jax import audio
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples and their format."""

    samples: np.ndarray
    """float32 (T,), or (T, 2) in stereo."""
    audio_format: AudioFormat = DEFAULT_FORMAT
    """Sample rate and channels of the samples."""

    @property
    def seconds(self) -> float:
        """Duration, seconds."""
        return len(self.samples) / self.audio_format.sample_rate

    @property
    def mono(self) -> np.ndarray:
        """Mean of the channels at the sound's own rate, float32 (T,)."""
        return self.samples if self.samples.ndim == 1 else self.samples.mean(axis=1, dtype=np.float32)

    @property
    def side(self) -> np.ndarray | None:
        """Half the difference of left and right, float32 (T,); None if the sound is mono."""
        if self.samples.ndim == 1:
            return None
        return np.float32(0.5) * (self.samples[:, 0] - self.samples[:, 1])

    def to(self, target: AudioFormat = DEFAULT_FORMAT) -> np.ndarray:
        """Samples in another format; these samples if it is the same."""
        return self._default if target == DEFAULT_FORMAT else self._convert(target)

    @cached_property
    def _default(self) -> np.ndarray:
        """24 kHz mono, which most measures take."""
        return self._convert(DEFAULT_FORMAT)

    def _convert(self, target: AudioFormat) -> np.ndarray:
        return audio.convert(self.samples, self.audio_format, target)

    def part(self, start: float, seconds: float) -> "Sound":
        """The part that begins at `start` s and lasts `seconds`, or what there is of it."""
        rate = self.audio_format.sample_rate
        first = round(start * rate)
        return Sound(self.samples[first : first + round(seconds * rate)], self.audio_format)
