"""The model card beside a released network: what it is, how it was made, from what, what it measures, its licence."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from melody_jax.data.records import read_manifest
from melody_jax.models.functional import Params, count

ROLES = {
    "mulan": "music and text in one space, quantised to prefix tokens",
    "tokenizer": "audio to 25 Hz semantic tokens",
    "lm": "prefix tokens to semantic tokens",
    "dpd": "semantic tokens to latents, by dual-path diffusion",
    "dpd_distilled": "semantic tokens to latents in 1, 2 or 4 steps; what is added to `dpd`",
    "vae": "latents to audio and back",
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
    """Markdown on the network `name`.

    recipe: every choice that made it. folders: of shards it learned from, described as far as they are still there.
    hashes: of the networks it was trained with. metrics: of its last evaluation and of what was fitted afterwards.
    """
    lines = [
        f"# Model card: {name}",
        f"A network of melody_jax (MeLoDy, arXiv 2305.15719): {ROLES[name]}. {count(params) / 1e6:.1f} M parameters; "
        f"`{name}.json` beside this file has its shape.",
        f"**Licence:** {licence}",
        "## Data",
        *(_data(folder) for folder in folders),
        "## Measured",
        *([_table(metrics)] if metrics else ["Nothing."]),
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
        return f"- `{folder}` (no longer there)"
    manifest = read_manifest(folder)
    settings = {
        name: value for name, value in manifest.settings.items() if isinstance(value, str | int | float)
    }
    made = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"- `{folder}`: {manifest.records} records of {manifest.kind}" + (f" ({made})" if made else "")


def _table(metrics: Mapping[str, float]) -> str:
    return "\n".join(
        ["| metric | value |", "| --- | --- |", *(f"| {k} | {v:.4g} |" for k, v in metrics.items())]
    )
