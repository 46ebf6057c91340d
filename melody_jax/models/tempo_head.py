"""Predicts a distribution over tempi for prompts that give none: a linear classifier of MuLan's text embedding.

Quantisation to prefix tokens removes much of the tempo that a style implies (docs/mini.md), so the language model may
play techno at 90 bpm. The sampler draws a tempo from this distribution and adds it to the prompt and control tokens.

B batch, E width of MuLan's space, N tempi of the control vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from melody_jax.control_tokens import ControlVocabulary
from melody_jax.models.functional import Params
from melody_jax.roles import BIAS, WEIGHT, Roles


@dataclasses.dataclass(frozen=True, kw_only=True)
class TempoHeadConfig:
    """Shape of the classifier."""

    embedding: int = 128
    """Width E of MuLan's space."""
    controls: ControlVocabulary = dataclasses.field(default_factory=ControlVocabulary)
    """The control tokens of the networks; the classes are its tempi, and one for music without a beat."""


TINY = TempoHeadConfig(embedding=16, controls=ControlVocabulary(tempos=8))
"""For tests."""


def init(config: TempoHeadConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters: all tempi are equally likely."""
    del key
    classes = config.controls.tempos + 1
    return {"kernel": jnp.zeros((config.embedding, classes)), "bias": jnp.zeros(classes)}


def roles(config: TempoHeadConfig) -> Roles:
    """The role of every parameter."""
    del config
    return {"kernel": WEIGHT, "bias": BIAS}


def shapes(config: TempoHeadConfig) -> Params:
    """The shape and type of every parameter."""
    return jax.eval_shape(lambda key: init(config, key), jax.random.key(0))


def log_probabilities(params: Params, points: Float[Array, "B E"]) -> Float[Array, "B _"]:
    """Log probabilities (B, N + 1) of centred embeddings on the unit sphere; the last class is music without a beat."""
    scaled = points * points.shape[-1] ** 0.5  # unit variance per channel
    return jax.nn.log_softmax(scaled @ params["kernel"] + params["bias"], axis=-1)


def draw_tempo(
    params: Params, config: TempoHeadConfig, point: Float[np.ndarray, " E"], seed: int, sharpness: float
) -> float | None:
    """A tempo in bpm for a prompt's point; None for music without a beat.

    sharpness: power to which the probabilities are raised; 0 forgets the prompt.
    """
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    logits = sharpness * (np.asarray(point, np.float64) * len(point) ** 0.5 @ kernel + bias)
    probabilities = np.exp(logits - logits.max())
    drawn = np.random.default_rng([seed, len(logits)]).choice(
        len(logits), p=probabilities / probabilities.sum()
    )
    return None if drawn == config.controls.tempos else config.controls.tempo(int(drawn))
