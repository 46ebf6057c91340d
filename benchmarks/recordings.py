"""What does the autoencoder keep of recordings that it never heard, and of the keys of composed test pieces?

    python benchmarks/recordings.py --recordings folder --judges corpus/train

Writes docs/evaluation/recordings-mini.md.

Three clips of each file, encoded and decoded: log-mel error, bass, notes and level; the key that the judge of `melody
evaluate` finds before and after (relative keys count as different); and whether the nearest original of a decoded clip,
in an embedding of log-mel statistics that no network learned, is its own. `melody_jax/weights/mini/ATTRIBUTION.md`
lists the recordings that were never trained on.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from free_prompts import fact_judge
from log_mel_embedding import LogMel
from tqdm import tqdm

from melody_jax import audio
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.control_tokens import KEYS
from melody_jax.errors import UserError
from melody_jax.evaluation import composed_prompts, fidelity, reconstruction
from melody_jax.evaluation.clip_features import chroma
from melody_jax.evaluation.composed_prompts import SECONDS
from melody_jax.evaluation.fact_judges import FactJudges
from melody_jax.evaluation.sound import Sound
from melody_jax.models import vae
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.cascade import load

ROOT = Path(__file__).parents[1]
RATE = DEFAULT_FORMAT.sample_rate
PLACES = (0.25, 0.5, 0.75)
"""Centres of a file's clips, as shares of its length."""
STRIDE = 2
"""Step through the list of prompts: 2 gives 80 composed pieces."""
MEASURES = ("bass_agreement", "note_agreement", "attack_agreement", "level_difference")


@dataclass(frozen=True)
class Arguments:
    """Measures the autoencoder of a 24 kHz mono release on recordings."""

    recordings: Path
    """Folder of sound files."""
    judges: Path
    """Audio shards of composed music, train split, for the judge of keys."""
    model: str = "mini"
    """Name of the release."""
    folder: str | None = None
    """Folder of releases; none: the packaged ones."""
    cache: Path = Path("runs/recordings")
    """Folder of the judge's features."""
    out: Path = ROOT / "docs" / "evaluation"
    """Folder of the table."""


def clips_of(file: Path) -> list[np.ndarray]:
    """Three clips (T,) of a file."""
    wave = audio.read(file, RATE, 1)
    size = round(SECONDS * RATE)
    if len(wave) < size:
        raise UserError(f"{file}: {len(wave) / RATE:.1f} s; it must be at least {SECONDS} s long")
    starts = [int(np.clip(place * len(wave) - size / 2, 0, len(wave) - size)) for place in PLACES]
    return [wave[start : start + size] for start in starts]


def composed() -> tuple[np.ndarray, np.ndarray]:
    """Composed test pieces (N, T) and their keys, indices into `KEYS`."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)[::STRIDE]
    clips, keys = [], []
    for number, prompt in enumerate(tqdm(prompts, unit="piece")):
        piece = composed_prompts.compose_piece(prompt)
        clips.append(composed_prompts.render_with(piece, "test", number)[: round(SECONDS * RATE)])
        keys.append(KEYS.index(piece.facts.key))
    return np.stack(clips), np.array(keys)


def share(values: np.ndarray) -> str:
    """How many of the values are true, of how many."""
    return f"{int(values.sum())} of {len(values)} ({values.mean():.2f})"


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    melody = load(arguments.model, folder=arguments.folder, networks=("vae",))
    params, config = melody.params["vae"], melody.configs["vae"]
    code = jax.jit(lambda clip: vae.decode(params, config, vae.encode(params, config, clip)))
    files = sorted(file for file in arguments.recordings.iterdir() if file.is_file())
    originals = np.stack([clip for file in tqdm(files, unit="file") for clip in clips_of(file)])
    scorer = fact_judge(arguments.judges, arguments.cache)
    assert isinstance(scorer, FactJudges)

    def decode(clips: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(code(clip[None])) for clip in tqdm(clips, unit="clip")])

    def keys_of(clips: np.ndarray) -> np.ndarray:
        return scorer.keys({"chroma": np.stack([chroma(clip) for clip in clips])})

    decoded = decode(originals)
    keys = [keys_of(clips) for clips in (originals, decoded)]
    pieces, true_keys = composed()
    right = [keys_of(clips) == true_keys for clips in (pieces, decode(pieces))]
    points = [LogMel()(clips) for clips in (originals, decoded)]
    scale = points[0].std(axis=0) + 1e-6
    distances = np.linalg.norm((points[1][:, None] - points[0][None]) / scale, axis=-1)
    rows = [
        fidelity.measures(Sound(clip, DEFAULT_FORMAT), Sound(original, DEFAULT_FORMAT), aligned=True)
        for clip, original in zip(decoded, originals, strict=True)
    ]
    means = {name: np.nanmean([row[name] for row in rows]) for name in MEASURES}
    errors = reconstruction.log_mel_l1(decoded, originals, RATE)
    fifths = np.isin((keys[1] - keys[0]) % len(KEYS), (0, 5, 7))
    lines = [
        f"{len(originals)} clips of {SECONDS} s from {len(files)} recordings.",
        "",
        "| measure | value | target |",
        "| --- | --- | --- |",
        f"| log-mel L1, nepers | {errors:.3f} | 0.30 |",
        *(f"| {fidelity.TITLES[name]} | {value:.2f} | |" for name, value in means.items()),
        f"| same key | {share(keys[0] == keys[1])} | 0.7 |",
        f"| same key, or a fifth away | {share(fifths)} | |",
        f"| nearest original is its own | {share(distances.argmin(axis=1) == np.arange(len(originals)))} | 0.8 |",
        "",
        f"The key of composed test pieces is right in {share(right[0])}, after the autoencoder in {share(right[1])}.",
    ]
    page = "\n".join(lines) + "\n"
    print(page)
    (arguments.out / f"recordings-{arguments.model}.md").write_text(page)


if __name__ == "__main__":
    main()
