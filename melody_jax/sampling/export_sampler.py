"""Writes the sampler as compiled-for-anything programs that play without this package (`jax.export`).

    melody export-sampler --model mini --batch 1 --out exported/
    python exported/play.py "a calm solo piano piece" --out song.wav

A folder holds, for one batch size and one window of music:
  sampler.cpu.jax, sampler.accelerator.jax   word pieces and settings -> semantic tokens and latents. The language
                                             model's loop is unrolled for CPUs and scanned for TPUs and GPUs
  decoder.cpu.jax, decoder.accelerator.jax   latents -> sound, its peaks limited
  weights.safetensors, tokenizer.json        float32; the tokenizer pads and cuts to the programs' length
  sampler.json                               inputs with their shapes and defaults, settings, hashes of all files
  play.py                                    reads all this in thirty lines, and keeps what it compiles in the folder
A program takes a dict of weights by name and a dict of inputs (the decoder: latents), all with the shapes said there.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer
from tqdm import tqdm

from melody_jax import __version__, audio, release
from melody_jax.errors import UserError
from melody_jax.models import mulan
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody, load
from melody_jax.sampling.prompts import targets_to_prefix, text_targets
from melody_jax.sampling.request import Request
from melody_jax.sampling.windows import Controls, SamplerConfig

FORMAT_VERSION = 1
PLATFORMS = {"cpu": ("cpu",), "accelerator": ("tpu", "cuda")}
"""Name of a program's file -> what it runs on."""
WEIGHTS = {"sampler": ("mulan", "lm", "dpd"), "decoder": ("vae",)}
"""Networks whose weights a program takes."""
Tensors = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class SamplerExportConfig:
    """Writes a folder that turns prompts into music without this package."""

    out: Path = Path("exported")
    """Folder to write; it must not exist."""
    model: str = "mini"
    """Name of a released model."""
    folder: Path | None = None
    """Where released models are; the package's own if left out."""
    distilled: bool = False
    """Takes the diffusion distilled for few steps."""
    batch: int = 1
    """Clips made at a time, 1 to 1024."""
    steps: int = 5
    """Diffusion steps."""
    schedule: str = "paper"
    """Angle schedule: paper or uniform."""
    solver: str = "ddim"
    """ddim, heun, multistep or pingpong."""
    guidance_scale: float = 2.5
    """Default of this input; 1 leaves guidance of the diffusion out of the program."""
    lm_guidance_scale: float = 2.0
    """The same of the language model."""


def export_sampler(settings: SamplerExportConfig) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        UserError: a setting is out of its range, the model is unknown, or the folder exists or cannot be written.
    """
    if not 1 <= settings.batch <= 1024:
        raise UserError(f"batch is {settings.batch}; it must be from 1 to 1024")
    if settings.out.exists():
        raise UserError(f"{settings.out} exists; give a new folder")
    names = ("steps", "schedule", "solver", "guidance_scale", "lm_guidance_scale")
    request = Request(prompt="any", **{name: getattr(settings, name) for name in names})
    melody = load(settings.model, folder=settings.folder, distilled=settings.distilled)
    config = melody.sampler_config(request)
    partial = settings.out.with_name(settings.out.name + ".part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, melody, config, request, settings)
        partial.rename(settings.out)
    except OSError as error:
        raise UserError(f"{settings.out}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"{settings.out}: {settings.batch} x {melody.window_seconds:g} s; try python {settings.out / 'play.py'} PROMPT"
    )


def _write(
    folder: Path, melody: Melody, config: SamplerConfig, request: Request, settings: SamplerExportConfig
) -> None:
    length = melody.configs["mulan"].text.max_length
    inputs, batch = _inputs(request, length), settings.batch
    weights = {
        name: np.asarray(value)
        for name, value in release.flatten(melody.params).items()
        if not name.startswith("mulan/music/")  # prompts are words
    }
    (folder / "weights.safetensors").write_bytes(safetensors.numpy.save(weights))
    _padded(melody.prompt_encoder.tokenizer, length).save(str(folder / "tokenizer.json"))
    shutil.copyfile(Path(__file__).with_name("standalone.py"), folder / "play.py")
    shapes = {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype) for name, (shape, dtype, _) in inputs.items()
    }
    latents = jax.ShapeDtypeStruct((batch, config.dpd.frames, config.dpd.latent_dim), jnp.float32)
    programs = {"sampler": (_sampler(melody, config), shapes), "decoder": (_decoder(melody), latents)}
    for name, target in tqdm([(name, target) for name in programs for target in PLATFORMS], desc="programs"):
        function, arguments = programs[name]
        own = {key: value for key, value in weights.items() if key.split("/")[0] in WEIGHTS[name]}
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS[target])(own, arguments)
        (folder / f"{name}.{target}.jax").write_bytes(exported.serialize())
    described = {
        "format_version": FORMAT_VERSION,
        "made_with": {"melody_jax": __version__, "jax": jax.__version__},
        "model": settings.model,
        "hash": melody.hash,
        "sample_rate": melody.sample_rate,
        "seconds": melody.window_seconds,
        "batch": batch,
        "settings": {
            name: getattr(config, name) for name in ("steps", "schedule", "solver", "guided", "lm_guided")
        },
        "programs": {name: {target: f"{name}.{target}.jax" for target in PLATFORMS} for name in programs},
        "platforms": PLATFORMS,
        "weights": WEIGHTS,
        "inputs": {
            name: {"shape": (batch, *shape), "dtype": np.dtype(dtype).name, "default": default}
            for name, (shape, dtype, default) in inputs.items()
        },
        "outputs": {"semantic_tokens": (batch, config.tokens), "latents": latents.shape},
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())
        },
    }
    (folder / "sampler.json").write_text(json.dumps(described, indent=2) + "\n")


def _padded(tokenizer: Tokenizer, length: int) -> Tokenizer:
    """A copy that pads with 0 or cuts to `length` word pieces."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(length)
    copy.enable_padding(pad_id=0, pad_token=copy.id_to_token(0) or "[PAD]", length=length)
    return copy


def _inputs(request: Request, length: int) -> dict[str, tuple[tuple[int, ...], Any, float]]:
    """Name -> (shape of an item, type, default) of what the sampler is given."""
    numbers = ("temperature", "top_p", "lm_guidance_scale", "guidance_scale")
    return {
        "ids": ((length,), np.int32, 0),
        "mask": ((length,), np.float32, 0),
        "seeds": ((), np.int32, 0),
        "top_k": ((), np.int32, request.top_k),
        **{name: ((), np.float32, getattr(request, name)) for name in numbers},
    }


def _sampler(melody: Melody, config: SamplerConfig) -> Callable[[Tensors, Tensors], Tensors]:
    text = melody.configs["mulan"]

    def sample(weights: Tensors, inputs: Tensors) -> Tensors:
        params, controls = release.unflatten(weights), dict(inputs)
        points = mulan.unit(text_targets(params["mulan"], text, controls.pop("ids"), controls.pop("mask")))
        prefix = targets_to_prefix(params["mulan"], text, points)
        none, first = jnp.full_like(prefix, -1), jnp.zeros_like(controls["seeds"])
        asked = Controls(prefix_tokens=prefix, negative_prefix_tokens=none, candidate=first, **controls)
        window = windows.first_window(params, config, asked)
        return window._asdict()

    return sample


def _decoder(melody: Melody) -> Callable[[Tensors, jax.Array], jax.Array]:
    config = melody.configs["vae"]

    def decode(weights: Tensors, latents: jax.Array) -> jax.Array:
        return limited(windows.latents_to_wave(release.unflatten(weights)["vae"], config, latents))

    return decode


def limited(wave: jax.Array) -> jax.Array:
    """`audio.peak_limit` of each item of (B, T), to rounding."""
    span = round(audio.LOOKAHEAD * audio.SAMPLE_RATE)
    window = ((1, 2 * span + 1), (1, 1), "VALID")
    needed = jnp.minimum(1.0, audio.CEILING / jnp.maximum(jnp.abs(wave), audio.CEILING))
    needed = jnp.pad(needed, ((0, 0), (2 * span, 2 * span)), constant_values=1.0)
    lowest = jax.lax.reduce_window(needed, jnp.inf, jax.lax.min, *window)
    gain = jax.lax.reduce_window(lowest, 0.0, jax.lax.add, *window) / (2 * span + 1)
    return jnp.clip(wave * gain, -audio.CEILING, audio.CEILING)
