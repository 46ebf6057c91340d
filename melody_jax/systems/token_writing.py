"""How a language model of AudioLM or MusicLM writes one sequence of tokens or codes, for a batch of clips."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from melody_jax.models import decoding
from melody_jax.models.decoding import CANDIDATES, Generated
from melody_jax.models.functional import Params
from melody_jax.models.lm_config import LMConfig
from melody_jax.sampling.item_controls import Controls, item_keys

SEMANTIC, COARSE, FINE = range(3)
"""Values of `use`: each language model folds its own into the random key."""


class Writing(NamedTuple):
    """Settings that are compiled into the programs of a batch."""

    guided: bool
    """Whether the semantic and the coarse model are guided away from the negative prompt."""
    candidates: int = CANDIDATES
    """Number of best ids that sampling looks at."""


def write_tokens(
    params: Params,
    config: LMConfig,
    length: int,
    use: int,
    prompt: jax.Array,
    begun: jax.Array,
    at_once: int,
    *,
    writing: Writing,
    number: int,
    controls: Controls,
    melody: jax.Array | None = None,
    temperatures: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Generated:
    """Generates a sequence (B, length) from a prompt. It starts with the given tokens `begun`, of which the first
    `at_once` are read in one pass. Each window (`number`) and each `use` has its own random key.

    temperatures: factors on the temperature of `controls`, by `use`.
    """
    missing = length - begun.shape[1]
    # of one shape, so that any `begun` has the same program
    fixed = jnp.pad(begun, ((0, 0), (0, missing)), constant_values=-1)
    melody = melody if config.melody_span else None
    controls = controls._replace(temperature=controls.temperature * temperatures[use])
    return _write_fixed(params, config, use, prompt, fixed, at_once, writing, number, controls, melody)


@partial(jax.jit, static_argnames=("config", "use", "at_once", "writing"))
def _write_fixed(
    params: Params,
    config: LMConfig,
    use: int,
    prompt: jax.Array,
    fixed: jax.Array,
    at_once: int,
    writing: Writing,
    number: jax.Array | int,
    controls: Controls,
    melody: jax.Array | None,
) -> Generated:
    """`write_tokens` of the tokens that are given in `fixed` (B, length), with -1 where one is drawn."""
    prompt = prompt[:, : config.given_length]
    keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, use), number))(item_keys(controls))
    negative = controls.negative_prefix_tokens[:, : config.prompt_length]
    return decoding.generate(
        params,
        config,
        prompt,
        keys,
        fixed.shape[1],
        temperature=controls.temperature,
        top_k=controls.top_k,
        top_p=controls.top_p,
        guidance_scale=controls.lm_guidance_scale if writing.guided and config.prompt_length else 1.0,
        primer=fixed[:, :at_once],
        negative_prefix_tokens=jnp.concatenate([negative, prompt[:, config.prompt_length :]], axis=1),
        candidates=writing.candidates,
        fixed=fixed,
        melody=melody,
    )
