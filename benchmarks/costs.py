"""Parameters of every size, and what a second of audio costs: coding and decoding it, and a training step on it.

    python benchmarks/costs.py                 # writes docs/evaluation/costs.md

Counts matrix products and convolutions in the traced programs (`melody_jax/flops.py`); nothing is run. Training is the
gradients of the loss without recomputation.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from melody_jax.audio_format import TOKEN_RATE
from melody_jax.config import load_config, with_fields
from melody_jax.flops import matmul_cost
from melody_jax.models import vae
from melody_jax.models.functional import count
from melody_jax.scale.programs import example

ROOT = Path(__file__).parents[1]
TITLE = """# What a second of audio costs

Parameters of every size, and billions of operations (GFLOP) for one second of its audio: what the autoencoder needs to
encode and to decode it, and what a training step of the language model and of the diffusion needs
(`benchmarks/costs.py`). Matrix products and convolutions of the traced programs are counted, forward and backward,
without recomputation; a product of n x m by m x k counts as 2nmk.

"""
SIZES = ("mini", "small", "paper", "modern")


@dataclass(frozen=True)
class Arguments:
    """Counts and writes the table."""

    out: Path = ROOT / "docs" / "evaluation" / "costs.md"
    """File of the table."""


def flops(function: Callable[..., Any], *shapes: Any) -> float:
    """Operations of a function of arrays of these shapes."""
    return matmul_cost(jax.make_jaxpr(function)(*shapes))[0]


def codec(size: str) -> list[str]:
    """Cells of the autoencoder: format, latents, parameters, GFLOP to encode and to decode a second of audio."""
    config = load_config(f"vae_{size}").stage.model
    form = config.audio_format
    model = jax.eval_shape(lambda key: vae.init(config, key), jax.random.key(0))
    samples = form.sample_rate - form.sample_rate % config.hop
    channels = [form.channels] * (form.channels > 1)
    audio = jax.ShapeDtypeStruct((1, samples, *channels), jnp.float32)
    latents = jax.ShapeDtypeStruct((1, samples // config.hop, config.latent_width), jnp.float32)
    encode = flops(lambda p, x: vae.posterior(p, config, x), model, audio)
    decode = flops(lambda p, z: vae.decode(p, config, z), model, latents)
    rate = form.sample_rate / config.hop
    cells = [str(form), f"{rate:g} x {config.latent_width}", f"{count(model) / 1e6:.1f}"]
    return [*cells, *(f"{cost / 1e9:.1f}" for cost in (encode, decode))]


def step(stage: str, size: str) -> list[str]:
    """Cells of the LM or the diffusion: parameters, and GFLOP of a training step for a second of audio."""
    config = load_config(f"{stage}_{size}")
    model = with_fields(config.stage.model, dtype="float32", remat="none")
    config = replace(config, stage=replace(config.stage, model=model))
    params = jax.eval_shape(config.stage.init, jax.random.key(0))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    cost = flops(config.stage.gradients, params, example(config), jax.random.key(0), number)
    seconds = config.data.window_tokens / TOKEN_RATE * config.data.batch_size
    return [f"{count(params['model']) / 1e6:.1f}", f"{cost / seconds / 1e9:.1f}"]


def main() -> None:
    """Counts, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    head = (
        "size", "audio", "latents a second", "autoencoder, M parameters", "encode, GFLOP", "decode, GFLOP",
        "LM, M parameters", "LM training, GFLOP", "diffusion, M parameters", "diffusion training, GFLOP",
    )  # fmt: skip
    rows = [head, ["---"] * len(head)]
    rows += [[size, *codec(size), *step("lm", size), *step("dpd", size)] for size in SIZES]
    page = TITLE + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
