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
    seed: int = 0
    """Item i of a batch uses seed + i."""
    batch: int = 1
    """How many clips to make of the prompt."""
    best_of: int = 1
    """Makes so many for each clip and keeps the one closest to the prompt."""

    audio_prompt: Path | None = None
    """A sound file whose style is wanted too; with an empty PROMPT, it alone."""
    audio_weight: float = 0.5
    """Its weight beside that of PROMPT, 1."""
    blend: tuple[str, ...] = ()
    """Further texts with their weights beside PROMPT's 1, such as "sad cello=0.5" "drums=-0.3"."""
    negative_prompt: str = ""
    """What the language model is led away from."""
    story: tuple[str, ...] = ()
    """Prompts that take over later, with their seconds, such as "20=fast techno" "40=calm piano"."""

    steps: int = 5
    """Diffusion steps; 5, 10 and 20 are the paper's."""
    schedule: str = "paper"
    """Angle schedule: paper or uniform."""
    solver: str = "ddim"
    """ddim, heun, multistep or pingpong."""
    guidance_scale: float = 2.5
    """Classifier-free guidance of the diffusion; 1 is none."""
    lm_guidance_scale: float = 2.0
    """Classifier-free guidance of the language model; 1 is none."""
    temperature: float = 1.1
    """Of the language model; 0 is greedy."""
    top_k: int = 250
    """The language model draws from its k most likely tokens."""
    top_p: float = 1.0
    """And of those from the fewest that hold this share of their mass."""

    model: str = "mini"
    """Name of a released model."""
    folder: Path | None = None
    """Where released models are; the package's own if left out."""
    distilled: bool = False
    """Uses the diffusion distilled for few steps: `--distilled True --steps 2 --solver pingpong`."""


@exits_cleanly
def main() -> None:
    """Parses, generates, writes, says what was written and how fast."""
    text, *options = sys.argv[1:] or ["--help"]
    arguments = override(Arguments(), [text, *options] if text in ("-h", "--help") else options)
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
    from melody_jax.sampling.request import Part, Scene, make_requests

    prompt = text
    if arguments.audio_prompt or arguments.blend:
        words = [Part(text=text)] if text.strip() else []
        sound = [Part(audio=arguments.audio_prompt, weight=arguments.audio_weight)] if arguments.audio_prompt else []
        others = [Part(text=words, weight=weight) for words, weight in _numbered("blend", arguments.blend)]
        prompt = (*words, *sound, *others)
    story = tuple(Scene(at=at, prompt=words) for words, at in _numbered("story", arguments.story, first=True))
    shared = ("seconds", "seed", "best_of", "negative_prompt", "steps", "schedule", "solver", "guidance_scale",
              "lm_guidance_scale", "temperature", "top_k", "top_p")  # fmt: skip
    settings = {name: getattr(arguments, name) for name in shared} | {"story": story}
    requests = make_requests([prompt] * arguments.batch, settings)

    melody = load(arguments.model, folder=arguments.folder, distilled=arguments.distilled)
    started = time.perf_counter()
    waves = melody.run(requests, progress=True)
    took = time.perf_counter() - started
    for path, wave in zip(paths, waves, strict=True):
        audio.write(path, wave, melody.sample_rate)
    made = arguments.seconds * arguments.batch
    print(f"{', '.join(map(str, paths))}: {made:g} s of music in {took:.1f} s (compiling included)")


def _numbered(name: str, values: tuple[str, ...], first: bool = False) -> list[tuple[str, float]]:
    """Pairs of words and a number from "words=number", or from "number=words" if the number comes first."""
    pairs = []
    for value in values:
        number, _, words = value.partition("=") if first else value.rpartition("=")[::-1]
        try:
            pairs.append((words, float(number)))
        except ValueError:
            raise UserError(f"{name} {value!r}: it must be {'SECONDS=PROMPT' if first else 'PROMPT=WEIGHT'}") from None
    return pairs


if __name__ == "__main__":
    main()
