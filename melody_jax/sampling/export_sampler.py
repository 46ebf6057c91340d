"""Writes the sampler as exported programs (`jax.export`) that run without this package.

    melody export-sampler --model mini --batch 1 --out exported/
    python exported/play.py "a calm solo piano piece" --out song.wav

A folder holds, for one batch size and one window of music:
  sampler.cpu.jax, sampler.accelerator.jax   word pieces and settings -> semantic tokens and latents
  decoder.cpu.jax, decoder.accelerator.jax   latents -> waveform, its peaks limited, its ends faded
  weights.safetensors, tokenizer.json        float32; the tokenizer pads and truncates to the programs' length
  sampler.json                               shapes and defaults of the inputs, settings, hashes of all files
  play.py                                    runs the programs, in about a hundred lines
A program takes a dict of weights by name and a dict of inputs (the decoder: latents) as sampler.json describes them;
"controls" are control tokens (control_tokens.py), of width 0 for a model without them. The language model's loop is
unrolled for CPUs and scanned for TPUs and GPUs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float
from tokenizers import Tokenizer
from tqdm import tqdm

from melody_jax import __version__, files, hub, loudness, release
from melody_jax.config_json import to_dict
from melody_jax.errors import UserError
from melody_jax.models import mulan
from melody_jax.options import option
from melody_jax.sampling import edges, plan, windows
from melody_jax.sampling.cascade import Melody, load
from melody_jax.sampling.item_controls import make_controls
from melody_jax.sampling.prompts import targets_to_prefix, text_targets
from melody_jax.sampling.request import Request
from melody_jax.sampling.settings import HOW, MODEL, WHERE, SamplingSettings, shared_settings, with_drawn_seed
from melody_jax.sampling.windows import SamplerConfig

FORMAT_VERSION = 1
PLATFORMS = {"cpu": ("cpu",), "accelerator": ("tpu", "cuda")}
"""Part of a program's file name -> the platforms that it runs on."""
WEIGHTS = {"sampler": ("mulan", "lm", "dpd"), "decoder": ("vae",)}
"""Program -> the networks whose weights it takes."""
Tensors = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class SamplerExportConfig(SamplingSettings):
    """Writes a standalone sampler: a folder that turns prompts into music without this package.

    Steps, schedule, solver, and whether guidance is used, are compiled into the programs. The other settings
    become defaults of the programs' inputs.
    """

    out: Path = option(Path("exported"), group=WHERE)
    """Folder to write; it must not exist."""
    batch: int = option(1, least=1, most=1024)
    """Clips made at a time."""
    model: str = option("mini", group=MODEL)
    """Name of a released model, or owner/name of one on the Hugging Face Hub."""
    folder: Path | None = None
    """Folder of released models. Default: those that ship with the package."""
    control_scale: float = option(1.0, group=HOW, least=-100, most=100)
    """Guidance of the language model towards the input "controls", such as 3. 1 leaves it out of the program."""
    distilled: bool = False
    """Exports the distilled diffusion, for few steps."""


def export_sampler(settings: SamplerExportConfig) -> None:
    """Writes the folder, completely or not at all.

    Raises:
        UserError: the model is unknown, or the folder exists or cannot be written.
    """
    settings = with_drawn_seed(settings)
    files.check_new(settings.out)
    settings = replace(settings, model=hub.pin(settings.model, settings.folder))
    melody = load(settings.model, folder=settings.folder, distilled=settings.distilled)
    if settings.control_scale != 1 and melody.configs["lm"].controls is None:
        raise UserError(
            f"control_scale is {settings.control_scale}; the language model of {settings.model} has no control tokens"
        )
    config = plan.sampler_config(Request(prompt="any", **shared_settings(settings)), melody.configs)
    config = replace(config, controlled=settings.control_scale != 1)
    with files.new_folder(settings.out) as folder:
        _write_folder(folder, melody, config, settings)
    print(
        f"{settings.out}: a sampler of {settings.batch} x {melody.window_seconds:g} s; run it with "
        f"python {settings.out / 'play.py'} PROMPT"
    )


def _write_folder(folder: Path, melody: Melody, config: SamplerConfig, settings: SamplerExportConfig) -> None:
    """Writes all files into the empty `folder`."""
    length = melody.configs["mulan"].text.max_length
    weights = {
        name: np.asarray(value)
        for network in (name for names in WEIGHTS.values() for name in names)
        for name, value in release.flatten({network: melody.params[network]}).items()
        if not name.startswith("mulan/music/")  # prompts are texts
    }
    files.write_bytes(folder / "weights.safetensors", safetensors.numpy.save(weights))
    tokenizer = _fixed_length(melody.prompt_encoder.tokenizer, length)
    files.write_bytes(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    files.write_bytes(folder / "play.py", files.read_bytes(Path(__file__).with_name("play.py")))
    vocabulary = plan.control_vocabulary(melody.configs)
    inputs = _input_table(settings, length, len(vocabulary.sizes) if vocabulary else 0)
    _write_programs(folder, melody, config, weights, inputs)
    hashes = {file.name: files.file_hash(file) for file in sorted(folder.iterdir())}
    latents = (settings.batch, config.dpd.frames, config.dpd.latent_dim)
    compiled_in = ("steps", "schedule", "solver", "guided", "lm_guided", "controlled")
    description = {
        "format_version": FORMAT_VERSION,
        "made_with": {"melody_jax": __version__, "jax": jax.__version__},
        "model": settings.model,
        "hash": melody.hash,
        "sample_rate": melody.sample_rate,
        "channels": melody.channels,
        "seconds": melody.window_seconds,
        "batch": settings.batch,
        "seed": settings.seed,
        "settings": {name: getattr(config, name) for name in compiled_in},
        "programs": {name: {target: _file_name(name, target) for target in PLATFORMS} for name in WEIGHTS},
        "platforms": PLATFORMS,
        "weights": WEIGHTS,
        "controls": None if vocabulary is None else to_dict(vocabulary),
        "inputs": {name: entry | {"dtype": np.dtype(entry["dtype"]).name} for name, entry in inputs.items()},
        "outputs": {"semantic_tokens": (settings.batch, config.tokens), "latents": latents},
        "sha256": hashes,
    }
    files.write_json(folder / "sampler.json", description, indent=2)


def _write_programs(
    folder: Path,
    melody: Melody,
    config: SamplerConfig,
    weights: dict[str, np.ndarray],
    inputs: dict[str, dict[str, Any]],
) -> None:
    """Exports the sampler and the decoder for every platform."""
    batch = inputs["seeds"]["shape"][0]
    shapes = {name: jax.ShapeDtypeStruct(entry["shape"], entry["dtype"]) for name, entry in inputs.items()}
    latents = jax.ShapeDtypeStruct((batch, config.dpd.frames, config.dpd.latent_dim), jnp.float32)
    programs: dict[str, tuple[Callable[..., Any], Any]] = {
        "sampler": (_sampler(melody, config), shapes),
        "decoder": (_decoder(melody), latents),
    }
    for name, target in tqdm([(name, target) for name in programs for target in PLATFORMS], disable=None):
        function, arguments = programs[name]
        used = {key: value for key, value in weights.items() if key.split("/")[0] in WEIGHTS[name]}
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS[target])(used, arguments)
        files.write_bytes(folder / _file_name(name, target), bytes(exported.serialize()))


def _file_name(program: str, target: str) -> str:
    return f"{program}.{target}.jax"


def _fixed_length(tokenizer: Tokenizer, length: int) -> Tokenizer:
    """A copy that pads with 0 or truncates to `length` word pieces."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(length)
    copy.enable_padding(pad_id=0, pad_token=copy.id_to_token(0) or "[PAD]", length=length)
    return copy


def _input_table(settings: SamplerExportConfig, length: int, controls: int) -> dict[str, dict[str, Any]]:
    """Name of an input of the sampler -> its shape, dtype and default."""
    batch = settings.batch
    table: dict[str, dict[str, Any]] = {
        "ids": {"shape": (batch, length), "dtype": np.int32, "default": 0},
        "mask": {"shape": (batch, length), "dtype": np.float32, "default": 0},
        "seeds": {"shape": (batch, 2), "dtype": np.uint32, "default": divmod(settings.seed, 2**32)},
        "top_k": {"shape": (batch,), "dtype": np.int32, "default": settings.top_k},
        "controls": {"shape": (batch, controls), "dtype": np.int32, "default": -1},
    }
    for name in (
        "temperature",
        "top_p",
        "lm_guidance_scale",
        "control_scale",
        "guidance_scale",
        "guidance_rescale",
    ):
        table[name] = {"shape": (batch,), "dtype": np.float32, "default": getattr(settings, name)}
    return table


def _sampler(melody: Melody, config: SamplerConfig) -> Callable[[Tensors, Tensors], Tensors]:
    """A function of weights and inputs to the semantic tokens and latents of one window."""
    encoder = melody.configs["mulan"]

    def sample(weights: Tensors, inputs: Tensors) -> Tensors:
        params = release.unflatten(weights)
        numbers = {name: value for name, value in inputs.items() if name not in ("ids", "mask", "controls")}
        targets = text_targets(params["mulan"], encoder, inputs["ids"], inputs["mask"])
        prefix = targets_to_prefix(params["mulan"], encoder, mulan.unit(targets))
        prefix = jnp.concatenate([prefix, inputs["controls"]], axis=1)
        controls = make_controls(prefix, [SamplingSettings()])._replace(**numbers)
        return windows.first_window(params, config, controls)._asdict()

    return sample


def _decoder(melody: Melody) -> Callable[[Tensors, jax.Array], jax.Array]:
    """A function of weights and latents to the waveform, its peaks limited and its ends faded."""
    config = melody.configs["vae"]
    gain = np.ones(melody.window_samples, np.float32)
    edges.fade_ends(gain, melody.sample_rate)
    gain = gain.reshape(-1, *[1] * (melody.channels > 1))

    def decode(weights: Tensors, latents: jax.Array) -> jax.Array:
        wave = windows.latents_to_wave(release.unflatten(weights)["vae"], config, latents)
        return limit_peaks(wave, melody.sample_rate) * jnp.asarray(gain)

    return decode


def limit_peaks(wave: Float[Array, " B T *C"], sample_rate: int) -> Float[Array, " B T *C"]:
    """`loudness.peak_limit` of each item, to rounding, as a traceable function."""
    span = round(loudness.LOOKAHEAD * sample_rate)
    window = ((1, 2 * span + 1), (1, 1), "VALID")
    magnitude = jnp.abs(wave).reshape(*wave.shape[:2], -1).max(axis=2)
    needed = jnp.minimum(1.0, loudness.CEILING / jnp.maximum(magnitude, loudness.CEILING))
    needed = jnp.pad(needed, ((0, 0), (2 * span, 2 * span)), constant_values=1.0)
    lowest = jax.lax.reduce_window(needed, jnp.inf, jax.lax.min, *window)
    gain = jax.lax.reduce_window(lowest, 0.0, jax.lax.add, *window) / (2 * span + 1)
    gain = gain.reshape(*gain.shape, *[1] * (wave.ndim - 2))
    return jnp.clip(wave * gain, -loudness.CEILING, loudness.CEILING)
