"""Text to music: python sample.py "a calm solo piano piece" --seconds 10 --seed 0 --out song.wav

Many clips: python sample.py --prompts prompts.jsonl --out clips. Without an end: python sample.py "..." --stream |
ffplay -f s16le -ar 24000 -ch_layout mono -i -
"""

from melody_jax.runtime import tune_allocator

if __name__ == "__main__":
    tune_allocator()

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError, cli_entry
from melody_jax.options import parse_options


@dataclass(frozen=True)
class Arguments:
    """python sample.py "PROMPT" [options]: makes music from a text prompt with a released model."""

    out: Path = Path("song.wav")
    """Where to write; with --batch above 1, song-0.wav, song-1.wav, ...; with --prompts a folder."""
    seconds: float | None = None
    """Length, at most 600; 10 if left out, while a stream then has no end. What is longer than one window (10.24 s for
    mini) is continued chunk by chunk."""
    seed: int = 0
    """Item i of a batch, or of a file, uses seed + i."""
    batch: int | None = None
    """How many clips to make of the prompt, 1 if left out; with --prompts how many at a time, 16 if left out."""
    best_of: int = 1
    """Makes so many for each clip and keeps the one closest to the prompt."""

    stream: bool = False
    """Writes to the standard output instead, as the music is made, for a player: 16-bit samples, 24,000 a second."""

    prompts: Path | None = None
    """Instead of PROMPT a file of many, a line {"prompt": ..., "id": ...} each, with settings of its own if it likes
    (docs/service.md). What is in --out already is not made again."""
    suffix: str = ".wav"
    """With --prompts: .wav, .flac or .ogg."""
    process: int = 0
    """With --prompts: which of the processes that share the file this is, from 0."""
    processes: int = 1
    """With --prompts: how many there are."""
    replace: bool = False
    """With --prompts: makes clips anew whose settings have changed."""

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

    source: Path | None = None
    """A sound file of yours to go on from up to --seconds; or to change, by --regions, --strength or --keep_tokens.
    With an empty PROMPT its own style is kept."""
    regions: tuple[str, ...] = ()
    """Seconds of the source that are made anew, such as 3-5 12.5-14; all else stays."""
    strength: float = 1.0
    """How far the source is left, above 0; below 1 the result is a variation of it."""
    keep_tokens: bool = False
    """Keeps the source's semantic tokens: its notes and rhythm, mostly."""

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
    """Uses the diffusion distilled for few steps: `--distilled --steps 2 --solver pingpong`."""


SETTINGS = ("seed", "best_of", "negative_prompt", "steps", "schedule", "solver", "guidance_scale", "lm_guidance_scale",
            "temperature", "top_k", "top_p", "source", "strength", "keep_tokens")  # fmt: skip
"""What goes on to the sampler as it is; the rest is put together first."""


@cli_entry
def main() -> None:
    """Parses, then makes a clip or a few, a stream, or a file's worth of clips."""
    text, *options = sys.argv[1:] or ["--help"]
    if text.startswith("-"):
        text, options = "", [text, *options]
    arguments = parse_options(Arguments(), options, "python sample.py")
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    if arguments.seconds is not None:
        settings["seconds"] = arguments.seconds
    settings["regions"] = tuple(_region(region) for region in arguments.regions)
    if arguments.prompts:
        _serve(arguments, text, settings)
    elif arguments.stream:
        _stream(arguments, text, settings)
    else:
        _write_clips(arguments, text, settings)


def _region(text: str) -> tuple[float, float]:
    """(begin, end) from "3-5"."""
    begin, _, end = text.partition("-")
    try:
        return float(begin), float(end)
    except ValueError:
        raise UserError(f"region {text!r}: it must be BEGIN-END in seconds, such as 3-5") from None


def _load(arguments: Arguments, sources: bool) -> Any:
    """The model, with what listens to sources if there are any."""
    from melody_jax import load
    from melody_jax.runtime import enable_compile_cache
    from melody_jax.sampling.cascade import NETWORKS

    enable_compile_cache()
    networks = (*NETWORKS, "tokenizer") if sources else NETWORKS
    return load(arguments.model, folder=arguments.folder, networks=networks, distilled=arguments.distilled)


def _write_clips(arguments: Arguments, text: str, settings: dict[str, Any]) -> None:
    """Generates, writes, says what was written and how fast."""
    batch = 1 if arguments.batch is None else arguments.batch
    if not 1 <= batch <= 1024:
        raise UserError(f"batch is {batch}; it must be from 1 to 1024")
    paths = [arguments.out]
    if batch > 1:
        paths = [arguments.out.with_stem(f"{arguments.out.stem}-{i}") for i in range(batch)]
    from melody_jax import audio
    from melody_jax.sampling.request import make_requests

    for path in paths:
        audio.check_writable(path)
    prompt, story = _prompt(arguments, text)
    requests = make_requests([prompt] * batch, settings | {"story": story})
    melody = _load(arguments, arguments.source is not None)
    started = time.perf_counter()
    waves = melody.run(requests, progress=True)
    took = time.perf_counter() - started
    for path, wave in zip(paths, waves, strict=True):
        audio.write(path, wave, melody.sample_rate)
    made = sum(map(len, waves)) / melody.sample_rate
    print(f"{', '.join(map(str, paths))}: {made:g} s of music in {took:.1f} s (compiling included)")


def _stream(arguments: Arguments, text: str, settings: dict[str, Any]) -> None:
    """Writes samples to the standard output until they end, or whoever reads them does."""
    if arguments.batch not in (None, 1):
        raise UserError(f"batch is {arguments.batch}; a stream is one clip, leave it out")
    if sys.stdout.isatty():
        raise UserError("stream: samples are nothing for a terminal; pipe them into a player or a file")
    from melody_jax import audio

    prompt, story = _prompt(arguments, text)
    try:
        for stretch in _load(arguments, sources=False).stream(prompt, **settings, story=story):
            sys.stdout.buffer.write(audio.to_int16(stretch, "stream").tobytes())
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains as it flushes at its end


def _serve(arguments: Arguments, text: str, settings: dict[str, Any]) -> None:
    """Makes what a file of prompts asks for."""
    for name in ("audio_prompt", "blend", "story", "stream"):
        if getattr(arguments, name):
            raise UserError(
                f"{name} does not go with prompts; put prompts of several parts and stories into the file"
            )
    if text:
        raise UserError(f"PROMPT {text!r} does not go with prompts; give one or the other")
    from melody_jax.sampling.batch_job import ServiceConfig, serve
    from melody_jax.sampling.manifest import read_items

    assert arguments.prompts is not None
    config = ServiceConfig(
        prompts=arguments.prompts,
        out=arguments.out,
        batch=16 if arguments.batch is None else arguments.batch,
        suffix=arguments.suffix,
        process=arguments.process,
        processes=arguments.processes,
        replace=arguments.replace,
    )
    items = read_items(arguments.prompts, settings)
    melody = _load(arguments, any(item.request.source is not None for item in items))
    print(f"{arguments.out}: {serve(melody, config, items)} clips made")


def _prompt(arguments: Arguments, text: str) -> tuple[Any, Any]:
    """The prompt with what is blended into it, and the story."""
    from melody_jax.sampling.request import Part, Scene

    story = tuple(Scene(at=at, prompt=words) for words, at in _numbered("story", arguments.story, first=True))
    if not arguments.audio_prompt and not arguments.blend:
        return text, story
    words = [Part(text=text)] if text.strip() else []
    sound = (
        [Part(audio=arguments.audio_prompt, weight=arguments.audio_weight)] if arguments.audio_prompt else []
    )
    others = [Part(text=words, weight=weight) for words, weight in _numbered("blend", arguments.blend)]
    return (*words, *sound, *others), story


def _numbered(name: str, values: tuple[str, ...], first: bool = False) -> list[tuple[str, float]]:
    """Pairs of words and a number from "words=number", or from "number=words" if the number comes first."""
    pairs = []
    for value in values:
        number, _, words = value.partition("=") if first else value.rpartition("=")[::-1]
        try:
            pairs.append((words, float(number)))
        except ValueError:
            raise UserError(
                f"{name} {value!r}: it must be {'SECONDS=PROMPT' if first else 'PROMPT=WEIGHT'}"
            ) from None
    return pairs


if __name__ == "__main__":
    main()
