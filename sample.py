"""Text to music: python sample.py "a calm solo piano piece" --seconds 10 --seed 0 --out song.wav"""

from melody_jax.process import tune_allocator

if __name__ == "__main__":
    tune_allocator()

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from melody_jax.config import override
from melody_jax.errors import UserError, exits_cleanly


@dataclass(frozen=True)
class Arguments:
    """python sample.py "PROMPT" [options]: makes music from a text prompt with a released model."""

    out: Path = Path("song.wav")
    """Where to write; with --batch above 1, song-0.wav, song-1.wav, ..."""
    seconds: float = 10.0
    """Length, at most 600; what is longer than one window (10.24 s for mini) is continued chunk by chunk."""
    steps: int = 5
    """Diffusion steps; 5, 10 and 20 are the paper's."""
    seed: int = 0
    """Item i of a batch uses seed + i."""
    batch: int = 1
    """How many clips to make of the prompt."""
    guidance_scale: float = 2.5
    """Classifier-free guidance of the diffusion; 1 is none."""
    lm_guidance_scale: float = 2.0
    """Classifier-free guidance of the language model; 1 is none."""
    temperature: float = 1.1
    """Of the language model; 0 is greedy."""
    top_k: int = 250
    """The language model draws from its k most likely tokens."""
    schedule: str = "paper"
    """Angle schedule: paper or uniform."""
    model: str = "mini"
    """Name of a released model."""
    folder: Path | None = None
    """Where released models are; the package's own if left out."""


@exits_cleanly
def main() -> None:
    """Parses, generates, writes, says what was written and how fast."""
    prompt, *options = sys.argv[1:] or ["--help"]
    arguments = override(Arguments(), [prompt, *options] if prompt in ("-h", "--help") else options)
    if not 1 <= arguments.batch <= 1024:
        raise UserError(f"batch is {arguments.batch}; it must be from 1 to 1024")
    paths = [arguments.out]
    if arguments.batch > 1:
        paths = [arguments.out.with_stem(f"{arguments.out.stem}-{i}") for i in range(arguments.batch)]

    from melody_jax import audio
    from melody_jax.process import enable_compile_cache

    for path in paths:
        audio.check_writable(path)
    enable_compile_cache()
    from melody_jax import load

    melody = load(arguments.model, folder=arguments.folder)
    started = time.perf_counter()
    waves = melody.generate(
        [prompt] * arguments.batch,
        seconds=arguments.seconds,
        steps=arguments.steps,
        seed=arguments.seed,
        guidance_scale=arguments.guidance_scale,
        lm_guidance_scale=arguments.lm_guidance_scale,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        schedule=arguments.schedule,
        progress=True,
    )
    took = time.perf_counter() - started
    for path, wave in zip(paths, waves, strict=True):
        audio.write(path, wave, melody.sample_rate)
    made = arguments.seconds * arguments.batch
    print(f"{', '.join(map(str, paths))}: {made:g} s of music in {took:.1f} s (compiling included)")


if __name__ == "__main__":
    main()
