"""The programs that are compiled ahead of time: the training step of a stage, and the sampler.

Both are traced from shapes alone, for a mesh of devices that need not be attached.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from melody_jax.composer import facts
from melody_jax.config import DataConfig, TrainConfig
from melody_jax.models import denoiser, dpd, lm, lm_config, mulan, vae
from melody_jax.models.functional import Params
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.sampling.item_controls import Controls, make_controls
from melody_jax.sampling.prompts import targets_to_prefix, text_targets
from melody_jax.sampling.settings import SamplingSettings
from melody_jax.sampling.windows import SamplerConfig, first_window, latents_to_wave
from melody_jax.sharding import batch_sharding, check_batch, mesh_context, state_sharding
from melody_jax.training.checkpoint import abstract_like
from melody_jax.training.loop import make_step
from melody_jax.training.state import create_state, state_roles

ITEMS = PartitionSpec(("data", "fsdp"))
PAPER_SAMPLER = SamplerConfig(lm=lm_config.PAPER, dpd=dpd.PAPER, lm_guided=True)
"""Five diffusion steps, both networks guided, as `Melody.generate` does by default."""
PAPER_PIECES = 64
"""Word pieces per prompt."""


def trace_step(config: TrainConfig, mesh: Mesh) -> Any:
    """The traced training step of `config` on the mesh (`jax.stages.Traced`). Raises `UserError` as
    `sharding.check_batch`."""
    check_batch(config.data.batch_size, mesh, config.accumulate)
    shapes = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    state = abstract_like(shapes, state_sharding(shapes, state_roles(config), mesh))
    batch = _placed(example(config), batch_sharding(mesh))
    with mesh_context(mesh):
        return make_step(config, state).trace(state, batch)


def trace_sampler(
    config: SamplerConfig, encoder: MuLanConfig, decoder: VAEConfig, batch_size: int, mesh: Mesh
) -> Any:
    """The traced sampler from texts to waveforms: data parallel, with all weights on every device.

    Raises `UserError` as `sharding.check_batch`.
    """
    check_batch(batch_size, mesh)

    def sample(params: dict[str, Params], ids: jax.Array, mask: jax.Array, controls: Controls) -> jax.Array:
        targets = text_targets(params["mulan"], encoder, ids, mask)
        controls = controls._replace(prefix_tokens=targets_to_prefix(params["mulan"], encoder, targets))
        window = first_window(params, config, controls)
        return latents_to_wave(params["vae"], decoder, window.latents)

    shapes = {
        "mulan": mulan.shapes(encoder),
        "lm": lm.shapes(config.lm),
        "dpd": denoiser.shapes(config.dpd),
        "vae": vae.shapes(decoder),
    }
    return trace_per_device(sample, shapes, batch_size, encoder.levels, mesh)


def trace_per_device(
    sample: Callable[[dict[str, Params], jax.Array, jax.Array, Controls], jax.Array],
    shapes: dict[str, Params],
    batch_size: int,
    levels: int,
    mesh: Mesh,
    pieces: int = PAPER_PIECES,
) -> Any:
    """A traced function of weights, word pieces, their mask and controls, each device with its own items.

    shapes: those of the weights. levels: prefix tokens of an item. pieces: word pieces of a prompt.
    """
    params = _placed(shapes, NamedSharding(mesh, PartitionSpec()))
    items = jax.eval_shape(partial(_inputs, batch_size, levels, pieces))
    specs = (PartitionSpec(), ITEMS, ITEMS, ITEMS)
    per_device = jax.shard_map(sample, mesh=mesh, in_specs=specs, out_specs=ITEMS, check_vma=False)
    return jax.jit(per_device).trace(params, *_placed(items, batch_sharding(mesh)))


def _inputs(batch_size: int, levels: int, length: int) -> tuple[jax.Array, jax.Array, Controls]:
    """Word pieces, their mask, and the controls of each item."""
    pieces = jnp.zeros((batch_size, length), jnp.int32)
    controls = make_controls(jnp.zeros((batch_size, levels), jnp.int32), [SamplingSettings()])
    return pieces, pieces.astype(jnp.float32), controls


def _placed(shapes: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def example(config: TrainConfig) -> dict[str, Any]:
    """The shapes of a training batch of the stage (data/pipeline.py), as `ShapeDtypeStruct`s."""
    data = config.data
    stage = config.stage

    def rows(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.batch_size, *shape), dtype)

    if stage.batch == "features":
        shape = stage.features
        controls = 0 if shape.controls is None else len(shape.controls.sizes)
        tokens = {
            "semantic_tokens": rows(data.window_tokens, dtype=jnp.int32),
            "prefix_tokens": rows(12 + controls, dtype=jnp.int32),
        }
        if shape.melody:
            tokens["melody"] = rows(data.window_tokens, dtype=jnp.int32)
        if shape.code_levels:
            frames = data.window_tokens * shape.latents_per_token
            return tokens | {"codes": rows(frames, shape.code_levels, dtype=jnp.int32)}
        frames, width = _latents(stage, data)
        return tokens | {"latents": rows(frames, width)}
    channels = stage.audio_format.channels
    audio = {"audio": rows(data.crop_samples, *[channels] * (channels > 1))}
    if stage.batch == "audio":
        return audio
    words = {"text_ids": rows(data.text_length, dtype=jnp.int32), "text_mask": rows(data.text_length)}
    labels = {name: rows(*value.shape, dtype=value.dtype) for name, value in facts.labels({}).items()}
    return audio | words | {"facts": labels}


def _latents(stage: Any, data: DataConfig) -> tuple[int, int]:
    """Frames and channels of the latents; the LM ignores them."""
    return (
        (stage.model.frames, stage.model.latent_dim)
        if stage.name.startswith("dpd")
        else (data.window_tokens, 1)
    )
