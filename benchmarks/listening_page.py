"""A page to listen to: clips of released models beside the composed pieces whose captions were their prompts.

    python benchmarks/listening_page.py        # writes docs/listen/: index.html, OGG files and spectrograms
    python benchmarks/listening_page.py --prompts 12 --out docs/listen/systems \\
        --models melody_ablation musiclm:musiclm_ablation audiolm:audiolm_ablation

The prompts are not chosen by ear: they are the last one of each of the 16 groups of `melody_jax/assets/prompts.jsonl`,
and the last but one of the first 8 groups. Clip i has the seed i, and all other settings are the defaults.
"""

import html
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from melody_jax import audio
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.evaluation import composed_prompts
from melody_jax.evaluation.composed_prompts import ComposedPrompt
from melody_jax.evaluation.sound import Sound
from melody_jax.files import make_folder, write_bytes
from melody_jax.runtime import enable_compile_cache
from melody_jax.studio.spectrogram import spectrogram_png
from melody_jax.systems import load

ROOT = Path(__file__).parents[1]
SECONDS = 10
RATE = SAMPLE_RATE
STYLE = """
body { font-family: sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
section { border-top: 1px solid #ccc; padding: 1em 0; } h2 { font-size: 1.05em; margin: 0 0 .4em; }
.clips { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20em, 100%), 1fr)); gap: 1em; }
img, audio { width: 100%; } h3 { font-size: .85em; font-weight: normal; margin: 0; }
"""
UNPROMPTED = """ AudioLM takes no prompts: its clips come from their seeds alone."""


@dataclass(frozen=True)
class Arguments:
    """Writes a listening page."""

    models: tuple[str, ...] = ("mini",)
    """The releases, each as NAME, or as SYSTEM:NAME unless it is a MeLoDy."""
    prompts: int = 24
    """Number of prompts, up to 24."""
    folder: str | None = None
    """Folder of releases; none: the packaged ones."""
    out: Path = ROOT / "docs" / "listen"
    """Folder of the page."""


def choose_prompts() -> list[tuple[int, ComposedPrompt]]:
    """The prompts, each with its place in its group, which selects the SoundFont of its composed piece."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    groups = [list(group) for _, group in itertools.groupby(prompts, lambda prompt: prompt.group)]
    last = [(len(group) - 1, group[-1]) for group in groups]
    last_but_one = [(len(group) - 2, group[-2]) for group in groups[:8]]
    return last + last_but_one


def picture(clip: np.ndarray) -> bytes:
    """A PNG of the log-frequency spectrogram with seconds and Hz, in 64 colours; clip (T,) at RATE."""
    small = io.BytesIO()
    drawn = io.BytesIO(spectrogram_png(clip, RATE, 500, 230))
    Image.open(drawn).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return small.getvalue()


def column(folder: Path, name: str, title: str, clip: np.ndarray) -> str:
    """Writes a clip and its spectrogram; returns their HTML."""
    audio.write(folder / f"{name}.ogg", clip, RATE)
    write_bytes(folder / f"{name}.png", picture(clip))
    label = html.escape(title)
    return (
        f'<div><h3>{label}</h3><img src="{name}.png" alt="Log-frequency spectrogram: {label}" loading="lazy">\n'
        f'<audio controls preload="none" src="{name}.ogg" aria-label="{label}"></audio></div>'
    )


def sections(models: tuple[str, ...], count: int, folder: str | None, out: Path) -> list[str]:
    """Writes clips and spectrograms; returns the HTML of every prompt."""
    prompts = choose_prompts()[:count]
    clips = {model: generate(model, [prompt.text for _, prompt in prompts], folder) for model in models}
    written = []
    for seed, (place, prompt) in enumerate(tqdm(prompts, unit="prompt")):
        columns = [
            column(
                out,
                f"{seed:02d}-{release_name(model)}",
                f"{release_name(model)}, seed {seed}",
                clips[model][seed],
            )
            for model in models
        ]
        composed = composed_prompts.ground_truth(prompt, place, SECONDS)
        columns.append(
            column(out, f"{seed:02d}-composed", "the composed piece that the caption describes", composed)
        )
        heading = f"<h2>{html.escape(prompt.text)}</h2>"
        written.append(f'<section>{heading}<div class="clips">{"".join(columns)}</div></section>')
    return written


def generate(model: str, texts: list[str], folder: str | None) -> list[np.ndarray]:
    """A clip for each text with the seeds 0, 1, ..., 24 kHz mono; AudioLM's do not follow the texts."""
    system = system_of(model)
    loaded = load(release_name(model), system=system, folder=folder)
    prompts = [None] * len(texts) if system == "audiolm" else texts
    clips = loaded.generate(prompts, seconds=SECONDS, seed=list(range(len(texts))))
    return [Sound(clip, loaded.audio_format).to() for clip in clips]


def system_of(model: str) -> str:
    """The system of SYSTEM:NAME, or MeLoDy."""
    return model.rpartition(":")[0] or "melody"


def release_name(model: str) -> str:
    """NAME, of NAME or SYSTEM:NAME."""
    return model.rpartition(":")[2]


def main() -> None:
    """Samples, renders and writes the page."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    make_folder(arguments.out)
    written = sections(arguments.models, arguments.prompts, arguments.folder, arguments.out)
    title = html.escape(f"{', '.join(map(release_name, arguments.models))}: {len(written)} prompts")
    note = UNPROMPTED if "audiolm" in map(system_of, arguments.models) else ""
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>
<p>The prompts are captions of composed pieces of the test split, chosen by rule: the last one of each of the 16 groups
of music, then the last but one of the first 8 groups, of which the first {len(written)} are here. Each clip was
generated once, with the default settings and the seed beside it; none was left out.
<code>melody sample "PROMPT" --seed SEED</code> makes it again.{note}</p>
{"".join(written)}</main></body></html>
"""
    write_bytes(arguments.out / "index.html", text.encode())


if __name__ == "__main__":
    main()
