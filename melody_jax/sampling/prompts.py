"""Prompts to points in MuLan's space, and those to prefix tokens.

Words, sounds and blends of both all become one point: each part is centred within its modality (models/mulan.py), and
the weighted sum is put back on the unit sphere. Items are embedded one after the other, so that an item's tokens do not
depend on its batch.

N prompts, W word pieces, T samples, E embedding, P prefix levels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from melody_jax import audio, text
from melody_jax.errors import UserError
from melody_jax.models import mulan, rvq
from melody_jax.models.functional import Params
from melody_jax.models.mulan import MuLanConfig
from melody_jax.sampling.request import Prompt, parts


@partial(jax.jit, static_argnames="config")
def text_targets(params: Params, config: MuLanConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Word pieces: ids and mask (N, W) -> centred embeddings (N, E)."""

    def one(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        return mulan.embed_text(params, config, item[0][None], item[1][None])[0]

    return mulan.centre(params, jax.lax.map(one, (ids, mask)), "text")


@partial(jax.jit, static_argnames="config")
def audio_targets(params: Params, config: MuLanConfig, windows: jax.Array) -> jax.Array:
    """Sound (N, T), float32 at 24 kHz -> centred embeddings (N, E)."""
    embedded = jax.lax.map(lambda window: mulan.embed_music(params, config, window[None])[0], windows)
    return mulan.centre(params, embedded, "music")


@partial(jax.jit, static_argnames="config")
def targets_to_prefix(params: Params, config: MuLanConfig, targets: jax.Array) -> jax.Array:
    """Points (N, E) on the unit sphere -> prefix tokens int32 (N, P)."""
    return jax.lax.map(partial(rvq.quantise, params["codebooks"][: config.levels]), targets)


class PromptEncoder:
    """MuLan as the sampler uses it; sound is heard in windows of `window_samples`, which are averaged."""

    def __init__(
        self, params: Params, config: MuLanConfig, tokenizer: Tokenizer, window_samples: int
    ) -> None:
        self.params, self.config, self.tokenizer, self.window_samples = (
            params,
            config,
            tokenizer,
            window_samples,
        )

    def target(self, prompt: Prompt) -> np.ndarray:
        """The point (E,) that a prompt names.

        Raises:
            UserError: a text is too long, a sound cannot be read or is under a second.
        """
        total = np.zeros(self.config.embedding, np.float32)
        for part in parts(prompt):
            if part.audio is None:
                ids, mask = _tokenise(part.text, self.config.text.max_length, self.tokenizer)
                point = text_targets(self.params, self.config, ids, mask)[0]
            else:
                point = self.heard(read_sound(part.audio, "an audio prompt"))
            total += part.weight * np.asarray(point)
        return np.asarray(mulan.unit(jnp.asarray(total)))

    def check(self, prompt: Prompt) -> None:
        """Raises what `target` would, without the work."""
        for part in parts(prompt):
            if part.audio is None:
                _tokenise(part.text, self.config.text.max_length, self.tokenizer)
            else:
                read_sound(part.audio, "an audio prompt")

    def prefix(self, prompt: Prompt) -> np.ndarray:
        """The prefix tokens int32 (P,) of a prompt. Raises as `target`."""
        return np.asarray(targets_to_prefix(self.params, self.config, self.target(prompt)[None])[0])

    def heard(self, wave: np.ndarray) -> np.ndarray:
        """The point (E,) of a sound (T,): the mean of its windows', the last of which ends with it.

        What is shorter than a window is repeated until it fills one.
        """
        size = self.window_samples
        wave = wave if len(wave) >= size else np.resize(wave, size)
        ends = dict.fromkeys([*range(size, len(wave), size), len(wave)])
        points = [
            np.asarray(audio_targets(self.params, self.config, wave[None, end - size : end])[0])
            for end in ends
        ]
        return np.asarray(mulan.unit(jnp.asarray(np.mean(points, axis=0))))


def read_sound(sound: Any, what: str) -> np.ndarray:
    """A sound file, or an array as it is: float32 (T,) at 24 kHz. `what` names it in the error.

    Raises:
        UserError: it cannot be read, is not mono or not finite, or is under a second.
    """
    wave = sound if isinstance(sound, np.ndarray) else audio.read(sound)
    if wave.ndim != 1 or not np.isfinite(wave).all() or len(wave) < audio.SAMPLE_RATE:
        which = f"shape {wave.shape}" if isinstance(sound, np.ndarray) else f"{sound}, {len(wave)} samples"
        raise UserError(f"{what} of {which}; it must be mono, finite and at least a second at 24 kHz")
    return wave.astype(np.float32)


def _tokenise(prompt: str, length: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    pieces = text.token_count(prompt, tokenizer)
    if pieces > length:
        raise UserError(
            f"prompt {prompt[:40]!r}... has {pieces - 2} word pieces; at most {length - 2} fit, shorten it"
        )
    return text.tokenize([prompt], length, tokenizer)
