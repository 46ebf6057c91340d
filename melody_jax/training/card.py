"""The model card of a released network: purpose, licence, data, metrics and recipe."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from melody_jax.data.records import read_manifest
from melody_jax.models.functional import Params, count

PURPOSES = {
    "mulan": "music and text in one space, quantised to prefix tokens",
    "tokenizer": "audio to 25 Hz semantic tokens",
    "lm": "prefix tokens to semantic tokens",
    "coarse": "semantic tokens to coarse acoustic codes",
    "fine": "coarse acoustic codes to fine ones",
    "dpd": "semantic tokens to latents, by dual-path diffusion",
    "dpd_distilled": "semantic tokens to latents in 1, 2 or 4 steps, stored as the difference to `dpd`",
    "generator": "word pieces to latents, often of a lower rate, by diffusion",
    "latent_generator": "word pieces to latents, by diffusion",
    "upsampler": "latents of a lower rate to those of the autoencoder, by diffusion",
    "dmae": "audio to latents, and back by diffusion",
    "vae": "latents to audio and back",
    "tempo": "a prompt to the tempi that it may mean",
}


def model_card(
    name: str,
    params: Params,
    recipe: Mapping[str, Any],
    folders: Sequence[str],
    hashes: Mapping[str, str],
    metrics: Mapping[str, float],
    licence: str,
) -> str:
    """The model card of the network `name`, as Markdown.

    recipe: the resolved config of the run. folders: shards that it was trained on, described if they still exist.
    hashes: sha256 of the networks it was trained with. metrics: of its last evaluation and of the fit after training.
    """
    lines = [
        f"# Model card: {name}",
        f"A network of melody_jax, the home of MeLoDy (arXiv 2305.15719): {PURPOSES[name]}. "
        f"{count(params) / 1e6:.1f} M parameters; `{name}.json` beside this file has its shape.",
        f"**Licence:** {licence}",
        "## Data",
        *(_data(folder) for folder in folders),
        "## Measured",
        *([metrics_table(metrics)] if metrics else ["Nothing."]),
    ]
    if hashes:
        lines += [
            "## Trained with",
            "\n".join(f"- {other} `{digest}`" for other, digest in sorted(hashes.items())),
        ]
    lines += ["## Recipe", f"```json\n{json.dumps(recipe, indent=2)}\n```"]
    return "\n\n".join(lines) + "\n"


def _data(folder: str) -> str:
    if not (Path(folder) / "manifest.json").is_file():
        return f"- `{folder}` (no longer available)"
    manifest = read_manifest(folder)
    settings = {
        name: value for name, value in manifest.settings.items() if isinstance(value, str | int | float)
    }
    described = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"- `{folder}`: {manifest.records} records of {manifest.kind}" + (
        f" ({described})" if described else ""
    )


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Names and values as a table in Markdown."""
    return "\n".join(
        ["| metric | value |", "| --- | --- |", *(f"| {k} | {v:.4g} |" for k, v in metrics.items())]
    )
